//! The trait of operations on rows, and how an operation enters candle's graph.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use kernels::host::rows;

use super::profile;
use super::storage;

/// An operation on `[rows, inputs]`, forward and backward, on the CPU.
pub trait Operation: Send + Sync {
    /// Names of the forward and of the backward pass in profiles and errors.
    fn names(&self) -> [&'static str; 2];

    /// `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Errors
    /// If a parameter cannot be read.
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>>;

    /// The gradient of `x`, given the gradient of `y`; adds the gradients of the parameters to
    /// their arena.
    ///
    /// In a chain, `x` is empty if the operation [overwrites its
    /// input](OperationKind::overwrites_input), and `y` is empty for the last operation.
    ///
    /// # Errors
    /// If a parameter cannot be read.
    fn backward(&self, x: &[f32], y: &[f32], dy: Cow<[f32]>, rows: usize) -> Result<Vec<f32>>;

    /// The operation's kind, which says how a chain treats its activations.
    fn kind(&self) -> OperationKind;

    /// [`Self::forward`] on a buffer that is not needed afterwards.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_owned(&self, x: Vec<f32>, rows: usize) -> Result<Vec<f32>> {
        self.forward(&x, rows)
    }

    /// Adds the result to `sum`, `[rows, outputs]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_add(&self, x: &[f32], rows: usize, sum: &mut [f32]) -> Result<()> {
        let y = self.forward(x, rows)?;
        rows::add(sum, &y);
        Ok(())
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
pub type Link = Arc<dyn Operation>;

/// Applies an operation to a tensor, as a node of its graph where it is tracked.
///
/// # Errors
/// Errors of the operation.
pub fn apply(x: &Tensor, operation: impl Operation + 'static) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Node(operation))
}

/// Runs an operation and records its time and the size of its result under `name`.
///
/// # Errors
/// Errors of the operation.
pub fn profiled(name: &'static str, run: impl FnOnce() -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let span = profile::span(name);
    let result = run()?;
    span.wrote(result.len());
    Ok(result)
}

struct Node<O>(O);

impl<O: Operation> CustomOp1 for Node<O> {
    fn name(&self) -> &'static str {
        self.0.names()[0]
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows) = (storage::slice(s, l)?, storage::rows(l.dims()));
        let y = profiled(self.name(), || self.0.forward(x, rows))?;
        let mut dims = l.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = y.len() / rows.max(1);
        }
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (dy, rows) = (dy.contiguous()?, storage::rows(x.dims()));
        let (from, to, grad) = (storage::open(x)?, storage::open(y)?, storage::open(&dy)?);
        let grad = Cow::Borrowed(grad.slice());
        let dx = profiled(self.0.names()[1], || {
            self.0.backward(from.slice(), to.slice(), grad, rows)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}
