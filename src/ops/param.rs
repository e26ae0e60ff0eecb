//! Parameters that carry their gradient.
//!
//! A parameter is a name, an `f32` value and, if it is trained, a gradient that is a view of its
//! store's arena. candle's graph carries activations only: each operation that reads a parameter
//! adds the parameter's gradient itself, unless it is frozen.

mod store;

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use kernels::device::Array;
use kernels::host::product::{Matrix, Panels, ProductKernel, Weight};

use super::backend::Backend;
use super::place::{Gpu, Place, lift};
use super::storage::{self, Reading};

pub use store::{InitialParam, ParamStore};

/// Whether a parameter is trained or frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainability {
    /// The parameter has a gradient, and the optimizer updates it.
    Trained,
    /// The parameter has no gradient and never changes.
    Frozen,
}

/// A named `f32` tensor with its gradient.
pub struct Param {
    name: String,
    value: Tensor,
    grad: Option<Grad>,
    packing: Mutex<Packing>,
    backend: Backend,
    /// Memory of the emulated GPU in place of the value's and the gradient's, which are the CPU's.
    _counted: Option<Array<f32>>,
}

/// How products get the parameter's panels.
enum Packing {
    /// Each product packs the parameter itself.
    OnTheWay,
    /// The first product after a change packs the panels, which are then kept.
    Kept(Option<Arc<Panels>>),
}

/// A matrix parameter as products read it.
pub enum Operand<G> {
    /// Panels that are kept.
    Panels(Arc<Panels>),
    /// Row-major elements and shape.
    Rows(Reading<G>, [usize; 2]),
}

impl<G: Deref<Target = Storage>> Operand<G> {
    /// The weight that a product reads.
    pub fn weight(&self) -> Weight<'_> {
        match self {
            Self::Panels(panels) => Weight::Panels(panels),
            Self::Rows(reading, [outputs, inputs]) => {
                Weight::Rows(Matrix::new(reading.slice(), *outputs, *inputs, *inputs))
            }
        }
    }
}

struct Grad {
    arena: Tensor,
    view: Tensor,
    offset: usize,
    reached: AtomicBool,
}

impl Param {
    /// Hugging Face tensor name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value, detached from every graph.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The backend of the operations that read the parameter.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// How our kernels compute products with the parameter.
    pub fn products(&self) -> ProductKernel {
        self.backend.products()
    }

    /// Shape in the engine's layout.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// Bytes of the value, without gradient, optimizer moments and kept panels.
    pub fn bytes(&self) -> usize {
        self.value.elem_count() * size_of::<f32>()
    }

    /// Whether the optimizer updates the parameter.
    pub fn is_trained(&self) -> bool {
        self.grad.is_some()
    }

    /// The accumulated gradient; `None` for a frozen parameter.
    pub fn grad(&self) -> Option<&Tensor> {
        self.grad.as_ref().map(|g| &g.view)
    }

    /// The matrix `[outputs, inputs]` for a product.
    ///
    /// # Errors
    /// If the parameter is not a CPU matrix.
    pub fn operand(&self) -> Result<Operand<impl Deref<Target = Storage>>> {
        let (outputs, inputs) = self.value.dims2()?;
        let reading = storage::open(&self.value)?;
        let mut packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match &mut *packing {
            Packing::OnTheWay => Operand::Rows(reading, [outputs, inputs]),
            Packing::Kept(panels) => {
                let matrix = Matrix::new(reading.slice(), outputs, inputs, inputs);
                let pack = || Arc::new(Panels::pack(self.products(), matrix));
                Operand::Panels(panels.get_or_insert_with(pack).clone())
            }
        })
    }

    /// Sets whether products keep the parameter's panels, which makes products of few rows fast, as
    /// in generation. Panels take the memory of the value once more; panels for the matrix unit,
    /// half as much again.
    pub fn keep_panels(&self, keep: bool) {
        let mut packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*packing, keep) {
            (Packing::OnTheWay, true) => *packing = Packing::Kept(None),
            (_, false) => *packing = Packing::OnTheWay,
            _ => {}
        }
    }

    /// Calls `f` with the row-major elements, copied to the CPU first if need be.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        match self.value.device() {
            Device::Cpu => storage::read(&self.value, f),
            _ => Ok(f(&self.value.flatten_all()?.to_vec1()?)),
        }
    }

    /// Changes the value in place on the CPU.
    ///
    /// # Errors
    /// If the parameter is on another device.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        self.forget_panels();
        storage::update(&self.value, f)
    }

    /// [`Self::update`] in any place.
    ///
    /// # Errors
    /// If the parameter is in another place; errors of `f`.
    pub fn update_in<P: Place>(&self, f: impl FnOnce(P::ViewMut<'_>) -> Result<()>) -> Result<()> {
        self.forget_panels();
        P::update(&self.value, &self.backend, f)
    }

    /// Replaces the value by a tensor of the same shape.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.dims() != self.dims() {
            bail!(
                "{}: cannot set {:?} from {:?}",
                self.name,
                self.dims(),
                value.dims()
            );
        }
        self.forget_panels();
        let flat = value
            .detach()
            .to_dtype(DType::F32)?
            .flatten_all()?
            .contiguous()?;
        self.value.flatten_all()?.slice_set(&flat, 0, 0)
    }

    /// Replaces the elements, in row-major order, where they lie.
    ///
    /// # Errors
    /// If their number differs, or the device fails.
    pub fn overwrite(&self, values: &[f32]) -> Result<()> {
        match &self.backend {
            Backend::Gpu(..) => self.update_in::<Gpu>(|mut own| lift(own.upload(values))),
            Backend::Host(_) | Backend::Composed(_) => self.set(&Tensor::from_slice(
                values,
                self.dims(),
                self.value.device(),
            )?),
        }
    }

    /// Calls `f` to add to the gradient on the CPU; does nothing for a frozen parameter.
    ///
    /// # Errors
    /// If the arena is on another device.
    pub fn accumulate_with(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let Some(grad) = &self.grad else {
            return Ok(());
        };
        grad.reached.store(true, Ordering::Relaxed);
        storage::update(&grad.view, f)
    }

    /// [`Self::accumulate_with`] in any place.
    ///
    /// # Errors
    /// If the arena is in another place; errors of `f`.
    pub fn with_gradient<P: Place>(
        &self,
        f: impl FnOnce(P::ViewMut<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(grad) = &self.grad else {
            return Ok(());
        };
        grad.reached.store(true, Ordering::Relaxed);
        P::update(&grad.view, &self.backend, f)
    }

    /// [`Self::with_gradient`] for several parameters at once: `f` gets the gradient of each,
    /// `None` for frozen ones.
    ///
    /// # Errors
    /// If the arena is in another place, or the parameters belong to several arenas; errors of `f`.
    pub fn accumulate_together<P: Place>(
        params: &[&Self],
        f: impl FnOnce(Vec<Option<P::ViewMut<'_>>>) -> Result<()>,
    ) -> Result<()> {
        let trained = params.iter().enumerate();
        let trained = trained.filter_map(|(i, param)| Some((i, param.grad.as_ref()?)));
        let mut trained: Vec<(usize, &Grad)> = trained.collect();
        let Some(&(_, first)) = trained.first() else {
            return Ok(());
        };
        if trained
            .iter()
            .any(|(_, grad)| grad.arena.id() != first.arena.id())
        {
            bail!(
                "{}: gradients of one layer lie in two arenas",
                params[0].name
            );
        }
        trained.sort_by_key(|(_, grad)| grad.offset);
        P::update(&first.arena, &params[0].backend, |mut rest| {
            let mut slices: Vec<_> = params.iter().map(|_| None).collect();
            let mut at = 0;
            for (i, grad) in trained {
                grad.reached.store(true, Ordering::Relaxed);
                let (_, from) = P::split(rest, grad.offset - at);
                let (slice, behind) = P::split(from, grad.view.elem_count());
                at = grad.offset + grad.view.elem_count();
                (slices[i], rest) = (Some(slice), behind);
            }
            f(slices)
        })
    }

    /// Adds `delta` (of the parameter's shape) to the gradient on any device; does nothing for a
    /// frozen parameter.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn accumulate(&self, delta: &Tensor) -> Result<()> {
        let Some(grad) = &self.grad else {
            return Ok(());
        };
        grad.reached.store(true, Ordering::Relaxed);
        let sum = (grad.view.detach() + delta.detach().reshape(self.dims())?)?.flatten_all()?;
        grad.arena.slice_set(&sum, 0, grad.offset)
    }

    fn forget_panels(&self) {
        let mut packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Packing::Kept(panels) = &mut *packing {
            *panels = None;
        }
    }
}

impl Grad {
    fn new(arena: &Tensor, offset: usize, shape: &[usize]) -> Result<Self> {
        let view = arena
            .narrow(0, offset, shape.iter().product())?
            .reshape(shape)?;
        Ok(Self {
            arena: arena.clone(),
            view,
            offset,
            reached: AtomicBool::new(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::host::product::product;

    #[test]
    fn kept_panels_follow_the_value() -> Result<()> {
        let initial = InitialParam {
            name: "w".to_owned(),
            shape: vec![3, 2],
            data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            training: Trainability::Trained,
        };
        let param = ParamStore::new(vec![initial], &Backend::CPU)?.get("w")?;
        let sums = || -> Result<Vec<f32>> {
            let operand = param.operand()?;
            Ok(product(
                param.products(),
                Matrix::new(&[1.0, 1.0], 1, 2, 2),
                &[operand.weight()],
            ))
        };
        assert!(matches!(param.operand()?, Operand::Rows(..)));
        assert_eq!(sums()?, [3.0, 7.0, 11.0]);
        param.keep_panels(true);
        assert!(matches!(param.operand()?, Operand::Panels(_)));
        assert_eq!(sums()?, [3.0, 7.0, 11.0]);
        param.update(|w| w[0] = 10.0)?;
        assert_eq!(sums()?, [12.0, 7.0, 11.0]);
        param.set(&Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?)?;
        assert_eq!(sums()?, [0.0; 3]);
        param.keep_panels(false);
        assert!(matches!(param.operand()?, Operand::Rows(..)));
        Ok(())
    }
}
