//! Parameters that carry their gradient, in one ordered store.
//!
//! A parameter is a name, an `f32` value and, when it is trained, a gradient that is a view of the store's arena: one
//! flat buffer for the norm, and the place where an all-reduce would go. candle's graph carries activations only;
//! each operation that reads a parameter adds its gradient here itself and does nothing for a frozen one.
//! The order is that of the names, so that sums over parameters and saved files never depend on chance.
//!
//! A store may hold frozen parameters of another store beside its own: models that have weights in common hold them once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

use super::dispatch::has_kernels;
use super::product::{Matrix, Panels, Weight};
use super::storage::{self, Reading};

/// Whether a parameter is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// It has a gradient and the optimizer moves it.
    Trained,
    /// It has no gradient and never moves.
    Frozen,
}

/// What a new parameter starts from.
pub struct Initial {
    /// Hugging Face tensor name.
    pub name: String,
    /// Shape in the engine's layout: matrices are `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
    /// Whether it is trained.
    pub training: Training,
}

/// A named `f32` tensor with its gradient.
pub struct Param {
    name: String,
    value: Tensor,
    grad: Option<Grad>,
    packing: Mutex<Packing>,
}

/// How products come by the parameter's panels.
enum Packing {
    /// They pack it on the way.
    OnTheWay,
    /// They are made at the first product after a change, and kept.
    Kept(Option<Arc<Panels>>),
}

/// A matrix parameter, ready for products.
pub enum Operand<G> {
    /// Packed, and kept so.
    Panels(Arc<Panels>),
    /// As it lies.
    Rows(Reading<G>, [usize; 2]),
}

impl<G: Deref<Target = Storage>> Operand<G> {
    /// What a product reads.
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

    /// The value, cut off from every graph.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Shape in the engine's layout.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// Bytes of the value, without gradient, moments and kept panels.
    pub fn bytes(&self) -> usize {
        self.value.elem_count() * size_of::<f32>()
    }

    /// Whether the optimizer moves it.
    pub fn is_trained(&self) -> bool {
        self.grad.is_some()
    }

    /// The accumulated gradient, or `None` when frozen.
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
                let pack = || Arc::new(Panels::pack(reading.slice(), outputs, inputs));
                Operand::Panels(panels.get_or_insert_with(pack).clone())
            }
        })
    }

    /// Whether products are to keep the parameter's panels: so they are fast where rows are few, as in generation, and take as
    /// much memory again.
    pub fn keep_panels(&self, keep: bool) {
        let mut packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*packing, keep) {
            (Packing::OnTheWay, true) => *packing = Packing::Kept(None),
            (_, false) => *packing = Packing::OnTheWay,
            _ => {}
        }
    }

    /// Hands the elements, row-major, to `f`; from another device they are copied first.
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
    /// If the parameter lives on another device.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        self.forget_panels();
        storage::update(&self.value, f)
    }

    /// Replaces the value by another tensor of the same shape.
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

    /// Adds to the gradient on the CPU; nothing for a frozen parameter.
    ///
    /// # Errors
    /// If the arena lives on another device.
    pub fn accumulate_with(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let Some(grad) = &self.grad else {
            return Ok(());
        };
        grad.reached.store(true, Ordering::Relaxed);
        storage::update(&grad.view, f)
    }

    /// Adds `delta` (same shape) to the gradient on any device; nothing for a frozen parameter.
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

/// Parameters in name order, with the gradients of the trained ones in one arena.
pub struct ParamStore {
    params: BTreeMap<String, Arc<Param>>,
    /// Names of those that belong to another store.
    shared: BTreeSet<String>,
    arena: Option<Tensor>,
    device: Device,
}

impl ParamStore {
    /// Builds the store; values go to `device`, the arena starts at zero.
    ///
    /// # Errors
    /// If two parameters have one name or a shape does not fit its data.
    pub fn new(initial: Vec<Initial>, device: &Device) -> Result<Self> {
        Self::sharing(initial, Vec::new(), device)
    }

    /// Builds a store that holds `shared`, frozen parameters of other stores, beside its own.
    ///
    /// # Errors
    /// As [`Self::new`], and if a shared parameter is trained, whose owner alone may move it, or lives on another device.
    pub fn sharing(
        mut initial: Vec<Initial>,
        shared: Vec<Arc<Param>>,
        device: &Device,
    ) -> Result<Self> {
        initial.sort_by(|a, b| a.name.cmp(&b.name));
        let size = |i: &Initial| {
            if i.training == Training::Trained {
                i.data.len()
            } else {
                0
            }
        };
        let total: usize = initial.iter().map(size).sum();
        let arena = (total > 0)
            .then(|| Tensor::zeros(total, DType::F32, device))
            .transpose()?;
        let (mut params, mut offset) = (BTreeMap::new(), 0);
        for item in initial {
            let length = size(&item);
            let grad = arena
                .as_ref()
                .filter(|_| length > 0)
                .map(|a| Grad::new(a, offset, &item.shape))
                .transpose()?;
            offset += length;
            let value = Tensor::from_vec(item.data, item.shape, device)?;
            let param = Param {
                name: item.name.clone(),
                value,
                grad,
                packing: Mutex::new(Packing::OnTheWay),
            };
            if params.insert(item.name.clone(), Arc::new(param)).is_some() {
                bail!("parameter {} is given twice", item.name);
            }
        }
        let mut store = Self {
            params,
            shared: BTreeSet::new(),
            arena,
            device: device.clone(),
        };
        shared
            .into_iter()
            .try_for_each(|param| store.share(param))?;
        Ok(store)
    }

    fn share(&mut self, param: Arc<Param>) -> Result<()> {
        let name = param.name().to_owned();
        if param.is_trained() {
            bail!("parameter {name} is trained, and only a frozen one can be shared");
        }
        if !param.value().device().same_device(&self.device) {
            bail!("parameter {name} lives on another device than those beside it");
        }
        if self.params.insert(name.clone(), param).is_some() {
            bail!("parameter {name} is given twice");
        }
        self.shared.insert(name);
        Ok(())
    }

    /// The parameter of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Arc<Param>> {
        match self.find(name) {
            Some(param) => Ok(param),
            None => bail!("no parameter is named {name}"),
        }
    }

    /// The parameter of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<Arc<Param>> {
        self.params.get(name).cloned()
    }

    /// All parameters in name order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Param>> {
        self.params.values()
    }

    /// The parameters that this store alone brings, in name order.
    pub fn owned(&self) -> impl Iterator<Item = &Arc<Param>> {
        self.iter().filter(|p| !self.shared.contains(p.name()))
    }

    /// The parameters that belong to another store, in name order.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<Param>> {
        self.iter().filter(|p| self.shared.contains(p.name()))
    }

    /// The trained parameters in name order.
    pub fn trained(&self) -> impl Iterator<Item = &Arc<Param>> {
        self.iter().filter(|p| p.is_trained())
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All gradients as one flat tensor, in name order; `None` when everything is frozen.
    pub fn arena(&self) -> Option<&Tensor> {
        self.arena.as_ref()
    }

    /// Sets every gradient to zero and forgets which parameters were reached.
    ///
    /// # Errors
    /// If the device fails.
    pub fn zero_grad(&self) -> Result<()> {
        for grad in self.trained().filter_map(|p| p.grad.as_ref()) {
            grad.reached.store(false, Ordering::Relaxed);
        }
        match &self.arena {
            Some(arena) if has_kernels(arena.device()) => storage::update(arena, storage::clear),
            Some(arena) => arena.zero_set(),
            None => Ok(()),
        }
    }

    /// Trained parameters that no backward pass has reached since [`Self::zero_grad`].
    pub fn unreached(&self) -> Vec<&str> {
        let missed = |p: &&Arc<Param>| {
            p.grad
                .as_ref()
                .is_some_and(|g| !g.reached.load(Ordering::Relaxed))
        };
        self.iter().filter(missed).map(|p| p.name()).collect()
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
    use crate::ops::product::product;

    fn initial(name: &str, training: Training) -> Initial {
        Initial {
            name: name.to_owned(),
            shape: vec![2],
            data: vec![1.0, 2.0],
            training,
        }
    }

    #[test]
    fn a_shared_parameter_is_held_once_and_counted_by_its_owner() -> Result<()> {
        let base = vec![
            initial("a", Training::Frozen),
            initial("b", Training::Frozen),
        ];
        let base = ParamStore::new(base, &Device::Cpu)?;
        let own = vec![initial("c", Training::Trained)];
        let branch = ParamStore::sharing(own, vec![base.get("b")?], &Device::Cpu)?;
        let names = |params: Vec<&Arc<Param>>| -> Vec<String> {
            params.iter().map(|p| p.name().to_owned()).collect()
        };
        assert_eq!(names(branch.iter().collect()), ["b", "c"]);
        assert_eq!(names(branch.owned().collect()), ["c"]);
        assert_eq!(names(branch.shared().collect()), ["b"]);
        assert_eq!(base.shared().count(), 0);
        assert!(Arc::ptr_eq(&base.get("b")?, &branch.get("b")?));
        assert_eq!(branch.owned().map(|p| p.bytes()).sum::<usize>(), 8);
        base.get("b")?.update(|v| v[1] = 7.0)?;
        assert_eq!(branch.get("b")?.read(<[f32]>::to_vec)?, [1.0, 7.0]);
        Ok(())
    }

    #[test]
    fn a_trained_parameter_and_a_name_given_twice_are_refused() -> Result<()> {
        let owner = vec![
            initial("a", Training::Trained),
            initial("b", Training::Frozen),
        ];
        let owner = ParamStore::new(owner, &Device::Cpu)?;
        let share = |name: &str| {
            let own = vec![initial("b", Training::Frozen)];
            let store = ParamStore::sharing(own, vec![owner.get(name)?], &Device::Cpu);
            Ok::<_, candle_core::Error>(store.map(|_| ()).unwrap_err().to_string())
        };
        assert!(share("a")?.contains("parameter a is trained"));
        assert!(share("b")?.contains("parameter b is given twice"));
        Ok(())
    }

    #[test]
    fn kept_panels_follow_the_value() -> Result<()> {
        let initial = Initial {
            name: "w".to_owned(),
            shape: vec![3, 2],
            data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            training: Training::Trained,
        };
        let param = ParamStore::new(vec![initial], &Device::Cpu)?.get("w")?;
        let sums = || -> Result<Vec<f32>> {
            let operand = param.operand()?;
            Ok(product(
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
