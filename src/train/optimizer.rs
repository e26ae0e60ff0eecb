//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), behind a clip of
//! the global norm.
//!
//! Moments are f32 and laid out like the gradients: one flat buffer each, in the order of the
//! parameters' names. The clip is a factor within the step, so each parameter is read once. Only
//! matrices decay. A step whose gradient is not finite is refused, and no parameter moves.

use candle_core::{DType, Result, Tensor};
use kernels::arguments::Factors;
use kernels::device::optimizer::{self as device, Parameter};
use kernels::device::{Array, Gpu};
use kernels::host::optimizer::{self as host, ParameterSlices};

use crate::ops::backend::Backend;
use crate::ops::param::{Param, ParamStore};
use crate::ops::place::{lift, read};
use crate::ops::profile;
use crate::ops::storage;
use crate::ops::work::{self, DeviceWork};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices, per unit of learning rate.
    pub weight_decay: f64,
    /// The global norm that gradients are clipped to; 0 does not clip.
    pub max_grad_norm: f64,
}

/// Result of an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepOutcome {
    /// A step was taken.
    Moved {
        /// Global gradient norm before clipping.
        grad_norm: f64,
    },
    /// The gradient was not finite; no parameter moved.
    NotFinite,
}

/// AdamW's moments of one parameter store.
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: Moments,
}

enum Moments {
    Host {
        first: Vec<f32>,
        second: Vec<f32>,
    },
    Gpu {
        first: Array<f32>,
        second: Array<f32>,
    },
    Device {
        first: Tensor,
        second: Tensor,
    },
}

impl AdamW {
    /// Zero moments for the trained parameters of `params`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(params: &ParamStore, config: AdamWConfig) -> Result<Self> {
        let _work = work::begin(DeviceWork::Optimizer);
        let size: usize = params.trained().map(|p| p.value().elem_count()).sum();
        let moments = Moments::new(size, params.backend())?;
        Ok(Self {
            config,
            steps: 0,
            moments,
        })
    }

    /// Steps taken so far, which the bias correction depends on.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Number of elements of each moment.
    pub fn size(&self) -> usize {
        self.moments.len()
    }

    /// First and second moments on the host, in name order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn moments(&self) -> Result<[std::borrow::Cow<'_, [f32]>; 2]> {
        Ok(match &self.moments {
            Moments::Host { first, second } => [first.into(), second.into()],
            Moments::Gpu { first, second } => [
                lift(first.download())?.into(),
                lift(second.download())?.into(),
            ],
            Moments::Device { first, second } => [
                first.to_vec1::<f32>()?.into(),
                second.to_vec1::<f32>()?.into(),
            ],
        })
    }

    /// Restores the state of an earlier run.
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn restore(&mut self, steps: u64, first: Vec<f32>, second: Vec<f32>) -> Result<()> {
        let size = self.moments.len();
        if first.len() != size || second.len() != size {
            candle_core::bail!(
                "optimizer: {} and {} moments for {size} parameters",
                first.len(),
                second.len()
            );
        }
        self.steps = steps;
        match &mut self.moments {
            Moments::Host {
                first: m,
                second: v,
            } => (*m, *v) = (first, second),
            Moments::Gpu {
                first: m,
                second: v,
            } => {
                lift(m.slice_mut().upload(&first))?;
                lift(v.slice_mut().upload(&second))?;
            }
            Moments::Device {
                first: m,
                second: v,
            } => {
                let device = m.device().clone();
                (*m, *v) = (
                    Tensor::from_vec(first, size, &device)?,
                    Tensor::from_vec(second, size, &device)?,
                );
            }
        }
        Ok(())
    }

    /// One step along the accumulated gradients; `rate` gives each parameter's learning rate.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(
        &mut self,
        params: &ParamStore,
        rate: impl Fn(&Param) -> f64,
    ) -> Result<StepOutcome> {
        let grad_norm = global_norm(params)?;
        if !grad_norm.is_finite() {
            return Ok(StepOutcome::NotFinite);
        }
        self.step_with(params, grad_norm, rate)?;
        Ok(StepOutcome::Moved { grad_norm })
    }

    /// [`Self::step`] where the gradients' norm is known, and finite.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step_with(
        &mut self,
        params: &ParamStore,
        grad_norm: f64,
        rate: impl Fn(&Param) -> f64,
    ) -> Result<()> {
        let _span = profile::span("optimizer");
        self.steps += 1;
        let clip = match self.config.max_grad_norm {
            limit if limit > 0.0 => (limit / (grad_norm + 1e-6)).min(1.0),
            _ => 1.0,
        };
        let mut offset = 0;
        for param in params.trained() {
            let factors = self.factors(clip, rate(param), param.dims().len() >= 2);
            self.moments.step(param, offset, factors)?;
            offset += param.value().elem_count();
        }
        Ok(())
    }

    fn factors(&self, clip: f64, rate: f64, decays: bool) -> Factors {
        let AdamWConfig {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = self.config;
        let t = self.steps as f64;
        Factors {
            clip: clip as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rate: (rate / (1.0 - beta1.powf(t))) as f32,
            root: (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
            epsilon: epsilon as f32,
            keep: if decays {
                (1.0 - rate * weight_decay) as f32
            } else {
                1.0
            },
        }
    }
}

impl Moments {
    /// Zeros for `size` elements.
    fn new(size: usize, backend: &Backend) -> Result<Self> {
        let zeros = |device| Tensor::zeros(size, DType::F32, device);
        Ok(match backend {
            Backend::Host(_) => Self::Host {
                first: vec![0.0; size],
                second: vec![0.0; size],
            },
            Backend::Gpu(gpu, _) => Self::Gpu {
                first: lift(gpu.zeros(size))?,
                second: lift(gpu.zeros(size))?,
            },
            Backend::Composed(device) => Self::Device {
                first: zeros(device)?,
                second: zeros(device)?,
            },
        })
    }

    /// Number of elements of one moment.
    fn len(&self) -> usize {
        match self {
            Self::Host { first, .. } => first.len(),
            Self::Gpu { first, .. } => first.len(),
            Self::Device { first, .. } => first.elem_count(),
        }
    }

    fn step(&mut self, param: &Param, offset: usize, factors: Factors) -> Result<()> {
        let Some(grad) = param.grad() else {
            return Ok(());
        };
        let range = offset..offset + grad.elem_count();
        match self {
            Self::Host { first, second } => storage::read(grad, |g| {
                let (m, v) = (&mut first[range.clone()], &mut second[range]);
                param.update(|values| {
                    let slices = ParameterSlices {
                        values,
                        gradients: g,
                        first: m,
                        second: v,
                    };
                    host::step(slices, factors);
                })
            })?,
            Self::Gpu { first, second } => read::<Gpu, _>(grad, param.backend(), |gradients| {
                param.update_in::<Gpu>(|values| {
                    let parameter = Parameter {
                        values,
                        gradients,
                        first: first.slice_mut().part(range.clone()),
                        second: second.slice_mut().part(range),
                        copy: None,
                    };
                    lift(device::step(parameter, factors))
                })
            }),
            Self::Device { first, second } => {
                let f = |x: f32| f64::from(x);
                let view = |t: &Tensor| t.narrow(0, range.start, range.len());
                let g = (grad.flatten_all()? * f(factors.clip))?;
                let m = ((view(first)? * f(factors.beta1))? + (&g * (1.0 - f(factors.beta1)))?)?;
                let v =
                    ((view(second)? * f(factors.beta2))? + (g.sqr()? * (1.0 - f(factors.beta2)))?)?;
                let step = (&m / ((v.sqrt()? * f(factors.root))? + f(factors.epsilon))?)?;
                let value = ((param.value().flatten_all()? * f(factors.keep))?
                    - (step * f(factors.rate))?)?;
                first.slice_set(&m, 0, range.start)?;
                second.slice_set(&v, 0, range.start)?;
                param.set(&value.reshape(param.dims())?)
            }
        }
    }
}

/// Norm of all gradients together. Squares are summed in fixed blocks, so threads do not change it.
///
/// # Errors
/// If the device fails.
pub fn global_norm(params: &ParamStore) -> Result<f64> {
    let _span = profile::span("gradient norm");
    let Some(arena) = params.arena() else {
        return Ok(0.0);
    };
    match params.backend() {
        Backend::Host(_) => storage::read(arena, host::global_norm),
        Backend::Gpu(..) => read::<Gpu, _>(arena, params.backend(), |arena| {
            lift(device::global_norm(arena))
        }),
        Backend::Composed(_) => Ok(f64::from(arena.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt()),
    }
}

#[cfg(test)]
mod tests;
