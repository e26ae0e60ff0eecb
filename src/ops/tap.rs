//! An identity operation that hands the gradient of its result to a closure.
//!
//! The composed forms of our operations, oracles of the tests, read a parameter's value outside the
//! graph. A tap on their result passes the incoming gradient to a closure, which
//! adds the parameter's gradient to its arena.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Tap<F>(F);

/// Returns `x`. In the backward pass, `f` gets the gradient of the result before it flows on to
/// `x`.
///
/// # Errors
/// If the copy fails.
pub fn tap<F>(x: &Tensor, f: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<()> + Send + Sync + 'static,
{
    x.contiguous()?.apply_op1(Tap(f))
}

impl<F: Fn(&Tensor) -> Result<()>> CustomOp1 for Tap<F> {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let data = super::storage::slice(storage, layout)?.to_vec();
        Ok((CpuStorage::F32(data), layout.shape().clone()))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        (self.0)(&grad)?;
        Ok(Some(grad))
    }
}
