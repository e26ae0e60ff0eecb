//! The trait of operations on rows, and how an operation enters candle's graph.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::backend::Backend;
use super::place::{Gpu, Host, MaybeOwned, Place, enter, read, tensor};
use super::profile;
use super::storage;

/// What all places know of an operation on `[rows, inputs]`.
pub trait Described: Send + Sync {
    /// Names of the forward and of the backward pass in profiles and errors.
    fn names(&self) -> [&'static str; 2];

    /// The operation's kind, which says how a chain treats its activations.
    fn kind(&self) -> OperationKind;
}

/// An operation on `[rows, inputs]` in a place, forward and backward.
pub trait Operation<P: Place>: Described {
    /// `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Errors
    /// If a parameter cannot be read, and errors of the device.
    fn forward(&self, x: P::View<'_>, rows: usize) -> Result<P::Rows>;

    /// The gradient of `x`, given the gradient of `y`; adds the gradients of the parameters to
    /// their arena.
    ///
    /// In a chain, `x` is empty if the operation [overwrites its
    /// input](OperationKind::overwrites_input), and `y` is empty for the last operation.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn backward(
        &self,
        x: P::View<'_>,
        y: P::View<'_>,
        dy: MaybeOwned<P>,
        rows: usize,
    ) -> Result<P::Rows>;

    /// [`Self::forward`] on a buffer that is not needed afterwards.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_owned(&self, x: P::Rows, rows: usize) -> Result<P::Rows> {
        self.forward(P::view(&x), rows)
    }

    /// Adds the result to `sum`, `[rows, outputs]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_add(&self, x: P::View<'_>, rows: usize, sum: P::ViewMut<'_>) -> Result<()> {
        let y = self.forward(x, rows)?;
        P::add(sum, P::view(&y))
    }
}

/// An operation that every place can run.
pub trait Everywhere: Operation<Host> + Operation<Gpu> {}

impl<T: Operation<Host> + Operation<Gpu>> Everywhere for T {}

/// A place that runs chains of operations.
pub trait ChainPlace: Place {
    /// The implementation of an operation for this place.
    fn operation(link: &Link) -> &dyn Operation<Self>;
}

impl ChainPlace for Host {
    fn operation(link: &Link) -> &dyn Operation<Self> {
        &**link
    }
}

impl ChainPlace for Gpu {
    fn operation(link: &Link) -> &dyn Operation<Self> {
        &**link
    }
}

/// Kind of an operation: the columns of its result, and how a chain treats its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Normalisation of rows or of heads.
    Norm,
    /// Linear layer.
    Linear {
        /// Columns of the result.
        outputs: usize,
        /// Sum of the ranks of its adapters: columns of their inner values.
        inner: usize,
    },
    /// Rotary position embedding.
    Rope,
    /// Attention with this number of output columns.
    Attention(usize),
    /// SwiGLU, which halves the number of columns.
    SwiGlu,
    /// GELU in either form.
    Gelu,
}

impl OperationKind {
    /// Columns of the result for an input of `inputs` columns.
    pub fn outputs(self, inputs: usize) -> usize {
        match self {
            Self::Linear { outputs, .. } | Self::Attention(outputs) => outputs,
            Self::SwiGlu => inputs / 2,
            Self::Norm | Self::Rope | Self::Gelu => inputs,
        }
    }

    /// Columns of the buffers that the backward pass holds besides the gradients of input and
    /// result: the inner values of adapters and their gradients.
    pub fn backward_buffers(self) -> usize {
        match self {
            Self::Linear { inner, .. } => 2 * inner,
            _ => 0,
        }
    }

    /// Whether the result is computed again in the backward pass instead of being kept for it.
    pub fn is_cheap(self) -> bool {
        matches!(self, Self::Norm | Self::SwiGlu | Self::Gelu)
    }

    /// Whether the forward pass overwrites its input, which the backward pass does not read.
    pub fn overwrites_input(self) -> bool {
        self == Self::Rope
    }

    /// Whether the backward pass overwrites the gradient of the result with that of the input.
    pub fn overwrites_gradient(self) -> bool {
        matches!(self, Self::Norm | Self::Rope | Self::Gelu)
    }
}

/// An operation in a chain.
pub type Link = Arc<dyn Everywhere>;

/// Applies an operation to a tensor, as a node of its graph where it is tracked.
///
/// # Errors
/// Errors of the operation.
pub fn apply(
    x: &Tensor,
    operation: impl Everywhere + 'static,
    backend: &Backend,
) -> Result<Tensor> {
    match backend {
        Backend::Gpu(..) => apply_in::<Gpu>(x, operation, backend),
        Backend::Host(_) | Backend::Composed(_) => apply_in::<Host>(x, operation, backend),
    }
}

fn apply_in<P: Place>(
    x: &Tensor,
    operation: impl Operation<P> + 'static,
    backend: &Backend,
) -> Result<Tensor> {
    let (x, rows) = (x.contiguous()?, storage::rows(x.dims()));
    let [name, backward_name] = operation.names();
    let y = read::<P, _>(&x, backend, |x| {
        profiled::<P>(name, || operation.forward(x, rows))
    })?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = P::len(P::view(&y)) / rows.max(1);
    }
    let own = backend.clone();
    enter::<P>(name, &x, y, dims, backend, move |x, y, dy| {
        let [x_read, y_read, dy] = [storage::lock(x)?, storage::lock(y)?, storage::lock(dy)?];
        let dy = MaybeOwned::Borrowed(P::of(&dy, &own)?);
        let dx = profiled::<P>(backward_name, || {
            operation.backward(P::of(&x_read, &own)?, P::of(&y_read, &own)?, dy, rows)
        })?;
        tensor::<P>(dx, x.dims(), &own)
    })
}

/// Runs an operation and records its time and the size of its result under `name`.
///
/// # Errors
/// Errors of the operation.
pub fn profiled<P: Place>(
    name: &'static str,
    run: impl FnOnce() -> Result<P::Rows>,
) -> Result<P::Rows> {
    let span = profile::span(name);
    let result = run()?;
    span.wrote(P::len(P::view(&result)));
    Ok(result)
}
