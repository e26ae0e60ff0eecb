//! Activation checkpointing: keeps a block's input instead of its activations and runs the block
//! again in the backward pass (Chen et al. 2016, §4).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, Var, bail,
};

type BlockFunction = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// `block(x)`, of which the graph keeps only `x`.
///
/// # Errors
/// Errors of the block.
pub fn recompute(x: &Tensor, block: BlockFunction) -> Result<Tensor> {
    let output = block(&x.detach())?.contiguous()?;
    x.contiguous()?.apply_op1(RecomputedBlock {
        block,
        output: Mutex::new(Some(output)),
    })
}

struct RecomputedBlock {
    block: BlockFunction,
    /// The result, until the forward pass moves it into the graph.
    output: Mutex<Option<Tensor>>,
}

impl RecomputedBlock {
    fn take_output(&self) -> Result<Tensor> {
        match self
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(output) => Ok(output),
            None => bail!("recompute: the forward pass ran twice"),
        }
    }
}

impl CustomOp1 for RecomputedBlock {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = self.take_output()?;
        let data = super::storage::read(&output, <[f32]>::to_vec)?;
        Ok((CpuStorage::F32(data), output.shape().clone()))
    }

    fn cuda_fwd(&self, _x: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = self.take_output()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cuda(cuda) => Ok((cuda.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("recompute: the output is on another device than the input"),
        }
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let input = Var::from_tensor(&x.detach())?;
        let y = (self.block)(input.as_tensor())?;
        let mut grads = (y * dy.detach())?.sum_all()?.backward()?;
        Ok(grads.remove(&input))
    }
}
