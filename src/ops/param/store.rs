//! An ordered store of parameters.
//!
//! The gradients of trained parameters are views of one arena: a flat buffer for the norm, and for
//! an all-reduce. Parameters are ordered by name, so that sums over them and saved files are
//! deterministic.
//!
//! A store may hold frozen parameters of another store beside its own, so that models hold weights
//! in common only once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor, bail};
use kernels::device::Array;
use kernels::host::rows;

use super::{Grad, Packing, Param, Trainability};
use crate::ops::backend::Backend;
use crate::ops::place::{Gpu, Place, lift, tensor};
use crate::ops::storage;

/// Initial state of a new parameter.
pub struct InitialParam {
    /// Hugging Face tensor name.
    pub name: String,
    /// Shape in the engine's layout: matrices are `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
    /// Whether the parameter is trained.
    pub training: Trainability,
}

/// Parameters in name order, with the gradients of the trained ones in one arena.
pub struct ParamStore {
    params: BTreeMap<String, Arc<Param>>,
    /// Names of the parameters that belong to another store.
    shared: BTreeSet<String>,
    arena: Option<Tensor>,
    backend: Backend,
}

impl ParamStore {
    /// Builds the store; values go to the backend's device, gradients start at zero.
    ///
    /// # Errors
    /// If two parameters have the same name or a shape does not fit its data.
    pub fn new(initial: Vec<InitialParam>, backend: &Backend) -> Result<Self> {
        Self::sharing(initial, Vec::new(), backend)
    }

    /// Builds a store that holds `shared`, frozen parameters of other stores, beside its own.
    ///
    /// # Errors
    /// As [`Self::new`]; and if a shared parameter is trained, which only its owner may update, or
    /// belongs to another backend.
    pub fn sharing(
        mut initial: Vec<InitialParam>,
        shared: Vec<Arc<Param>>,
        backend: &Backend,
    ) -> Result<Self> {
        initial.sort_by(|a, b| a.name.cmp(&b.name));
        let size = |i: &InitialParam| {
            if i.training == Trainability::Trained {
                i.data.len()
            } else {
                0
            }
        };
        let total: usize = initial.iter().map(size).sum();
        let arena = (total > 0).then(|| zeros(total, backend)).transpose()?;
        let (mut params, mut offset) = (BTreeMap::new(), 0);
        for item in initial {
            let length = size(&item);
            let grad = arena
                .as_ref()
                .filter(|_| length > 0)
                .map(|a| Grad::new(a, offset, &item.shape))
                .transpose()?;
            offset += length;
            let counted = counted(item.data.len() + length, backend)?;
            let value = on_device(item.data, item.shape, backend)?;
            let param = Param {
                name: item.name.clone(),
                value,
                grad,
                packing: Mutex::new(Packing::OnTheWay),
                backend: backend.clone(),
                _counted: counted,
            };
            if params.insert(item.name.clone(), Arc::new(param)).is_some() {
                bail!("two parameters are named {}", item.name);
            }
        }
        let mut store = Self {
            params,
            shared: BTreeSet::new(),
            arena,
            backend: backend.clone(),
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
        if !param.backend().is_same(&self.backend) {
            bail!("parameter {name} belongs to another backend than the model that is to share it");
        }
        if self.params.insert(name.clone(), param).is_some() {
            bail!("two parameters are named {name}");
        }
        self.shared.insert(name);
        Ok(())
    }

    /// The parameter named `name`.
    ///
    /// # Errors
    /// If there is no such parameter.
    pub fn get(&self, name: &str) -> Result<Arc<Param>> {
        match self.find(name) {
            Some(param) => Ok(param),
            None => bail!("no parameter is named {name}"),
        }
    }

    /// The parameter named `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Arc<Param>> {
        self.params.get(name).cloned()
    }

    /// All parameters in name order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Param>> {
        self.params.values()
    }

    /// The store's own parameters, in name order.
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

    /// The backend of the operations that read the parameters.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> &Device {
        self.backend.device()
    }

    /// All gradients as one flat tensor, in name order; `None` when everything is frozen.
    pub fn arena(&self) -> Option<&Tensor> {
        self.arena.as_ref()
    }

    /// Sets every gradient to zero and resets [`Self::unreached`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn zero_grad(&self) -> Result<()> {
        for grad in self.trained().filter_map(|p| p.grad.as_ref()) {
            grad.reached.store(false, Ordering::Relaxed);
        }
        let Some(arena) = &self.arena else {
            return Ok(());
        };
        match &self.backend {
            Backend::Host(_) => storage::update(arena, rows::clear),
            Backend::Gpu(..) => Gpu::update(arena, &self.backend, |mut all| lift(all.clear())),
            Backend::Composed(_) => arena.zero_set(),
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

/// A tensor of the backend with these elements.
fn on_device(data: Vec<f32>, shape: Vec<usize>, backend: &Backend) -> Result<Tensor> {
    match backend {
        Backend::Gpu(gpu, _) => {
            if shape.iter().product::<usize>() != data.len() {
                bail!("{} elements for the shape {shape:?}", data.len());
            }
            tensor::<Gpu>(lift(gpu.upload(&data))?, shape, backend)
        }
        Backend::Host(_) | Backend::Composed(_) => Tensor::from_vec(data, shape, backend.device()),
    }
}

/// A flat tensor of zeros.
fn zeros(len: usize, backend: &Backend) -> Result<Tensor> {
    match backend {
        Backend::Gpu(gpu, _) => tensor::<Gpu>(lift(gpu.zeros(len))?, len, backend),
        Backend::Host(_) | Backend::Composed(_) => Tensor::zeros(len, DType::F32, backend.device()),
    }
}

/// Memory of `len` numbers on the emulated GPU, whose tensors lie in the CPU's; `None` elsewhere.
fn counted(len: usize, backend: &Backend) -> Result<Option<Array<f32>>> {
    match backend {
        Backend::Gpu(gpu, Device::Cpu) => lift(gpu.array(len)).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(name: &str, training: Trainability) -> InitialParam {
        InitialParam {
            name: name.to_owned(),
            shape: vec![2],
            data: vec![1.0, 2.0],
            training,
        }
    }

    #[test]
    fn a_shared_parameter_is_held_once_and_counted_by_its_owner() -> Result<()> {
        let base = vec![
            initial("a", Trainability::Frozen),
            initial("b", Trainability::Frozen),
        ];
        let base = ParamStore::new(base, &Backend::CPU)?;
        let own = vec![initial("c", Trainability::Trained)];
        let branch = ParamStore::sharing(own, vec![base.get("b")?], &Backend::CPU)?;
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
            initial("a", Trainability::Trained),
            initial("b", Trainability::Frozen),
        ];
        let owner = ParamStore::new(owner, &Backend::CPU)?;
        let share = |name: &str| {
            let own = vec![initial("b", Trainability::Frozen)];
            let store = ParamStore::sharing(own, vec![owner.get(name)?], &Backend::CPU);
            Ok::<_, candle_core::Error>(store.map(|_| ()).unwrap_err().to_string())
        };
        assert!(share("a")?.contains("parameter a is trained"));
        assert!(share("b")?.contains("two parameters are named b"));
        Ok(())
    }
}
