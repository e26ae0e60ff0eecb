//! The border between our operations and candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::Place;
use crate::ops::backend::Backend;

/// The gradient of a node's input, given the input, the result and the gradient of the result.
type Backward = Box<dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync>;

/// A tensor of `rows`, which were computed from `x`, as a node of the graph of `x` where that is
/// tracked.
///
/// # Errors
/// If the device fails.
pub(crate) fn enter<P: Place>(
    name: &'static str,
    x: &Tensor,
    rows: P::Rows,
    shape: impl Into<Shape>,
    backend: &Backend,
    backward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Node {
        name,
        result: Mutex::new(Some(P::storage(rows, backend.device())?)),
        shape: shape.into(),
        backward: Box::new(backward),
    })
}

/// A tensor of `rows`, outside every graph.
///
/// # Errors
/// If the device fails.
pub(crate) fn tensor<P: Place>(
    rows: P::Rows,
    shape: impl Into<Shape>,
    backend: &Backend,
) -> Result<Tensor> {
    let storage = P::storage(rows, backend.device())?;
    Ok(Tensor::from_storage(
        storage,
        shape,
        BackpropOp::none(),
        false,
    ))
}

/// A node whose result was computed before candle asks for it.
struct Node {
    name: &'static str,
    result: Mutex<Option<Storage>>,
    shape: Shape,
    backward: Backward,
}

impl Node {
    fn take(&self) -> Option<Storage> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.take()
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take() {
            Some(Storage::Cpu(result)) => Ok((result, self.shape.clone())),
            _ => bail!(
                "{}: the result is not on the CPU, as its input is",
                self.name
            ),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take() {
            Some(Storage::Cuda(result)) => Ok((result, self.shape.clone())),
            _ => bail!(
                "{}: the result is not on the GPU, as its input is",
                self.name
            ),
        }
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(x, y, &dy.contiguous()?).map(Some)
    }
}
