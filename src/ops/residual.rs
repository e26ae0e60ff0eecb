//! `x + f(x)` as one node of the graph, for an `f` that is a chain of our operations.
//!
//! In candle's graph each edge between operations costs a zero-filled buffer and an addition on the way back. Inside a residual
//! branch every result has one reader, so the chain is walked by hand: the backward of each operation gets the gradient that the
//! next one returned, and the branch's gradient is added to the residual's once. With [`Keep::Input`] only `x` is held and the
//! chain runs again on the way back (Chen et al. 2016, §4).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::pool;
use super::profile;
use super::storage;

/// One of our operations, ready to be chained.
pub type Operation = Arc<Box<dyn CustomOp1 + Send + Sync>>;

/// What a branch holds for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The input of every operation.
    All,
    /// The branch's input alone.
    Input,
}

/// Elements of one task of an addition.
const BLOCK: usize = 1 << 15;

/// `x + chain(x)` on the CPU. The backward of the chain's last operation must not read its own result, which is not held.
///
/// # Errors
/// Those of the operations, or if the chain's result has another shape than `x`.
pub fn residual(x: &Tensor, chain: Vec<Operation>, keep: Keep) -> Result<Tensor> {
    let mut steps = run(&x.detach(), &chain)?;
    let output = steps.pop().filter(|y| y.dims() == x.dims());
    let Some(output) = output else {
        bail!("residual: the branch changes the shape {:?}", x.dims())
    };
    let kept = (keep == Keep::All).then_some(steps);
    x.contiguous()?.apply_op1(Residual {
        chain,
        kept,
        output: Mutex::new(Some(output)),
    })
}

/// The input and every result of a chain, in order.
fn run(x: &Tensor, chain: &[Operation]) -> Result<Vec<Tensor>> {
    let mut steps = vec![x.contiguous()?];
    for operation in chain {
        let next = steps[steps.len() - 1].apply_op1_arc(operation.clone())?;
        steps.push(next);
    }
    Ok(steps)
}

struct Residual {
    chain: Vec<Operation>,
    /// The input of each operation, if they are kept.
    kept: Option<Vec<Tensor>>,
    /// The branch's result, needed until the sum is made.
    output: Mutex<Option<Tensor>>,
}

impl CustomOp1 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("residual");
        let Some(branch) = self
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            bail!("residual: the forward pass ran twice")
        };
        let mut sum = storage::slice(s, l)?.to_vec();
        storage::read(&branch, |branch| add(&mut sum, branch))?;
        Ok((CpuStorage::F32(sum), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("residual backward");
        let dy = dy.contiguous()?;
        let again;
        let steps = match &self.kept {
            Some(steps) => steps,
            None => {
                again = run(&x.detach(), &self.chain)?;
                &again
            }
        };
        let nothing = Tensor::zeros(0, x.dtype(), x.device())?;
        let mut grad = dy.clone();
        for (i, operation) in self.chain.iter().enumerate().rev() {
            let result = if i + 1 == self.chain.len() {
                &nothing
            } else {
                &steps[i + 1]
            };
            match operation.bwd(&steps[i], result, &grad)? {
                Some(next) => grad = next,
                None => bail!("residual: {} returned no gradient", operation.name()),
            }
        }
        storage::read(&dy, |dy| storage::update(&grad, |grad| add(grad, dy)))??;
        Ok(Some(grad))
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    pool::for_each(
        to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)),
        |(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        },
    );
}
