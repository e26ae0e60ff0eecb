//! Linear layers: `y = x · Wᵀ + b`, with several weights side by side when they read the same input.
//!
//! `x` is `[tokens, inputs]`, each `W` is `[outputs, inputs]`; `y` holds the outputs one weight after the other. Forward on
//! the CPU is [`product`]; backward adds `dW += dyᵀ · x` straight into the arena.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::dispatch::has_kernels;
use super::param::{Operand, Param};
use super::product::{Matrix, Threads, Weight, Write, multiply, product};
use super::profile;
use super::residual::Operation;
use super::storage;
use super::tap::tap;

/// A weight `[outputs, inputs]` with an optional bias `[outputs]`.
#[derive(Clone)]
pub struct Projection {
    /// `[outputs, inputs]`
    pub weight: Arc<Param>,
    /// `[outputs]`
    pub bias: Option<Arc<Param>>,
}

/// One or more projections of the same input.
#[derive(Clone)]
pub struct Linear {
    parts: Arc<[Projection]>,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// Joins projections that read the same input.
    ///
    /// # Errors
    /// If a weight is no matrix, inputs differ, or a bias does not fit.
    pub fn new(parts: Vec<Projection>) -> Result<Self> {
        let mut outputs = 0;
        let mut inputs = None;
        for part in &parts {
            let (n, k) = part.weight.value().dims2()?;
            if *inputs.get_or_insert(k) != k {
                bail!(
                    "{}: {k} inputs beside a weight with another number",
                    part.weight.name()
                );
            }
            if let Some(bias) = part.bias.as_ref().filter(|b| b.dims() != [n]) {
                bail!(
                    "{}: shape {:?} where [{n}] is needed",
                    bias.name(),
                    bias.dims()
                );
            }
            outputs += n;
        }
        match inputs {
            Some(inputs) => Ok(Self {
                parts: parts.into(),
                inputs,
                outputs,
            }),
            None => bail!("a linear layer needs a weight"),
        }
    }

    /// Width of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `[tokens, inputs]` → `[tokens, outputs]`.
    ///
    /// # Errors
    /// If the widths disagree or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims2()?.1 != self.inputs {
            bail!(
                "{}: input {:?} where [tokens, {}] is needed",
                self.parts[0].weight.name(),
                x.dims(),
                self.inputs
            );
        }
        if has_kernels(x.device()) {
            x.contiguous()?.apply_op1(Fused(self.clone()))
        } else {
            self.composed(x)
        }
    }

    /// The layer as a link of a chain.
    pub fn operation(&self) -> Operation {
        Arc::new(Box::new(Fused(self.clone())))
    }

    /// The same as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let outputs: Vec<_> = self
            .parts
            .iter()
            .map(|part| part.composed(x))
            .collect::<Result<_>>()?;
        Tensor::cat(&outputs, 1)
    }
}

impl Projection {
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.value().t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias.value())?,
            None => y,
        };
        let (part, x) = (self.clone(), x.detach());
        tap(&y, move |dy| {
            if part.weight.is_trained() {
                part.weight.accumulate(&dy.t()?.matmul(&x)?)?;
            }
            match part.bias.as_ref().filter(|b| b.is_trained()) {
                Some(bias) => bias.accumulate(&dy.sum(0)?),
                None => Ok(()),
            }
        })
    }

    /// Adds the bias to this projection's columns of `y`, which begin at `at`.
    fn add_bias(&self, y: &mut [f32], width: usize, at: usize) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        storage::read(bias.value(), |bias| {
            for row in y.chunks_exact_mut(width) {
                row[at..at + bias.len()]
                    .iter_mut()
                    .zip(bias)
                    .for_each(|(y, b)| *y += b);
            }
        })
    }

    /// Adds this projection's share of the gradients, given its columns of `dy`.
    fn backward(
        &self,
        x: Matrix,
        dy: &[f32],
        width: usize,
        dx: &mut [f32],
        inputs: usize,
    ) -> Result<()> {
        let (rows, n) = (dx.len() / inputs, self.weight.dims()[0]);
        let columns = Matrix::new(dy, rows, n, width);
        storage::read(self.weight.value(), |w| {
            multiply(
                columns,
                Matrix::new(w, n, inputs, inputs),
                dx,
                inputs,
                Write::Add,
                Threads::All,
            );
        })?;
        self.weight
            .accumulate_with(|dw| multiply(columns.t(), x, dw, inputs, Write::Add, Threads::All))?;
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        bias.accumulate_with(|db| {
            for row in dy.chunks(width) {
                db.iter_mut().zip(row).for_each(|(db, g)| *db += g);
            }
        })
    }
}

struct Fused(Linear);

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("linear");
        let (x, width, inputs) = (storage::slice(s, l)?, self.0.outputs, self.0.inputs);
        let rows = l.dims()[0];
        let operands: Vec<_> = self
            .0
            .parts
            .iter()
            .map(|part| part.weight.operand())
            .collect::<Result<_>>()?;
        let weights: Vec<Weight> = operands.iter().map(Operand::weight).collect();
        let mut y = vec![0f32; rows * width];
        product(
            Matrix::new(x, rows, inputs, inputs),
            &weights,
            &mut y,
            width,
            0,
        );
        let mut at = 0;
        for part in self.0.parts.iter() {
            part.add_bias(&mut y, width, at)?;
            at += part.weight.dims()[0];
        }
        Ok((CpuStorage::F32(y), Shape::from((rows, width))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("linear backward");
        let (dy, width, inputs) = (dy.contiguous()?, self.0.outputs, self.0.inputs);
        let rows = x.dims()[0];
        let mut dx = vec![0f32; rows * inputs];
        storage::read(x, |x| {
            storage::read(&dy, |dy| {
                let (x, mut at) = (Matrix::new(x, rows, inputs, inputs), 0);
                for part in self.0.parts.iter() {
                    part.backward(x, &dy[at.min(dy.len())..], width, &mut dx, inputs)?;
                    at += part.weight.dims()[0];
                }
                Ok::<_, candle_core::Error>(())
            })
        })???;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}
