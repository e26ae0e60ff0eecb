//! Residual branches `x + f(x)`, one after the other, as one node of the graph; `f` is a chain of
//! our operations.
//!
//! In candle's graph each edge between operations costs a zero-filled buffer and an addition in the
//! backward pass. Inside and between residual branches every result has one reader, so this node
//! runs the operations itself: the backward pass of each one gets the gradient that the next one
//! returned. It needs the input of each operation; these are kept from the forward pass, except for
//! results of cheap operations, which are computed again, and inputs that an operation overwrote.
//! With [`Recompute::Block`] only `x` is kept and the chain runs again in the backward pass
//! (Chen et al. 2016, §4). [`memory`] says which activations are kept, and counts them.
//!
//! If only some rows of the result are wanted, the last operation and the sum run on these rows
//! alone.

pub mod memory;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use kernels::host::product::Write;
use kernels::host::rows::{self, gather};

use super::operation::{Link, profiled};
use super::storage;
use crate::config::Recompute;
use memory::HeldInputs;

/// Rows of a result that are computed; `None` for all of them.
pub type WantedRows = Option<Arc<[u32]>>;

/// The `wanted` rows of `x + chain(x)`; the chain's result must have the shape of `x`.
pub struct Branch {
    /// Operations of the branch.
    pub chain: Vec<Link>,
    /// Rows of the result.
    pub wanted: WantedRows,
}

/// Runs branches one after the other on the CPU, as one node of the graph; `recompute` says whether
/// each branch keeps its activations or runs again in the backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn residuals(x: &Tensor, branches: Vec<Branch>, recompute: Recompute) -> Result<Tensor> {
    let branch = |Branch { chain, wanted }| Residual {
        chain,
        recompute,
        wanted,
        held: Mutex::default(),
    };
    x.contiguous()?.apply_op1(Residuals {
        branches: branches.into_iter().map(branch).collect(),
        between: Mutex::default(),
    })
}

/// A matrix of `count` rows with the rows of `x` at the indices `rows`, and zero elsewhere. Rows
/// with the same index are added up or, with [`Write::Set`], written over each other.
fn scatter(x: &[f32], rows: &[u32], count: usize, write: Write) -> Vec<f32> {
    let width = x.len() / rows.len().max(1);
    let mut all = vec![0f32; count * width];
    for (&row, x) in rows.iter().zip(x.chunks_exact(width.max(1))) {
        let to = &mut all[row as usize * width..][..width];
        match write {
            Write::Set => to.copy_from_slice(x),
            Write::Add => rows::add(to, x),
        }
    }
    all
}

/// `x += chain(x)`, for `[rows, width]` and without a backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn add_branch(x: &mut [f32], rows: usize, chain: &[Link]) -> Result<()> {
    let Some((last, before)) = chain.split_last() else {
        return Ok(());
    };
    let input = run(x, rows, before)?;
    add_result(x, &input, rows, last)
}

/// `chain(x)`, without a backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn run(x: &[f32], rows: usize, chain: &[Link]) -> Result<Vec<f32>> {
    ChainInputs::default().run(x, rows, chain, HeldInputs::Nothing)
}

/// `sum += link(x)`
///
/// # Errors
/// Errors of the operation.
pub fn add_result(sum: &mut [f32], x: &[f32], rows: usize, link: &Link) -> Result<()> {
    profiled(link.names()[0], || {
        link.forward_add(x, rows, sum)?;
        Ok(Vec::new())
    })?;
    Ok(())
}

/// The kept inputs of a chain's operations. The input of the first operation, which is the
/// branch's, is not among them.
#[derive(Default)]
struct ChainInputs(Vec<Option<Vec<f32>>>);

impl ChainInputs {
    /// Runs a chain, keeps inputs as `what` says, and returns the result.
    fn run(
        &mut self,
        x: &[f32],
        rows: usize,
        chain: &[Link],
        what: HeldInputs,
    ) -> Result<Vec<f32>> {
        let mut current = None::<Vec<f32>>;
        for (i, link) in chain.iter().enumerate() {
            let kind = link.kind();
            current = Some(match current.take() {
                None => {
                    self.0.push(None);
                    profiled(link.names()[0], || link.forward(x, rows))?
                }
                Some(input) if kind.overwrites_input() => {
                    self.0.push(None);
                    profiled(link.names()[0], || link.forward_owned(input, rows))?
                }
                Some(input) => {
                    let next = profiled(link.names()[0], || link.forward(&input, rows))?;
                    let hold = what.holds(chain[i - 1].kind(), kind);
                    self.0.push(hold.then_some(input));
                    next
                }
            });
        }
        Ok(current.unwrap_or_else(|| x.to_vec()))
    }

    /// Keeps the input of the chain's last operation if `what` says so, or if it has the wanted
    /// rows alone, from which no operation can compute it again.
    fn hold_last(
        &mut self,
        input: Vec<f32>,
        chain: &[Link],
        what: HeldInputs,
        wanted: &WantedRows,
    ) {
        let hold = match chain {
            [.., made, last] => wanted.is_some() || what.holds(made.kind(), last.kind()),
            _ => false,
        };
        self.0.push(hold.then_some(input));
    }

    /// The input of operation `i`: `x`, a kept one, one computed again, or an empty one if it is
    /// not read.
    fn of<'a>(
        &'a self,
        i: usize,
        x: &'a [f32],
        rows: usize,
        chain: &[Link],
    ) -> Result<Cow<'a, [f32]>> {
        match (i, &self.0[i]) {
            (0, _) => Ok(Cow::Borrowed(x)),
            (_, Some(input)) => Ok(Cow::Borrowed(input)),
            _ if chain[i].kind().overwrites_input() => Ok(Cow::Borrowed(&[])),
            _ => {
                let (before, input) = (&chain[i - 1], self.of(i - 1, x, rows, chain)?);
                let again = profiled(before.names()[0], || before.forward(&input, rows))?;
                Ok(Cow::Owned(again))
            }
        }
    }

    /// [`Self::of`] by value, for an operation after the first.
    fn take(&mut self, i: usize, x: &[f32], rows: usize, chain: &[Link]) -> Result<Vec<f32>> {
        match self.0[i].take() {
            Some(input) => Ok(input),
            None => Ok(self.of(i, x, rows, chain)?.into_owned()),
        }
    }
}

struct Residual {
    chain: Vec<Link>,
    recompute: Recompute,
    wanted: WantedRows,
    /// Inputs kept from the forward pass for the backward pass.
    held: Mutex<Option<ChainInputs>>,
}

impl Residual {
    /// The wanted rows.
    fn pick<'a>(&self, x: Cow<'a, [f32]>, rows: usize) -> Cow<'a, [f32]> {
        match &self.wanted {
            None => x,
            Some(wanted) => Cow::Owned(gather(&x, x.len() / rows.max(1), wanted)),
        }
    }

    /// All rows, given the wanted ones.
    fn unpick<'a>(&self, x: Cow<'a, [f32]>, rows: usize, write: Write) -> Cow<'a, [f32]> {
        match &self.wanted {
            None => x,
            Some(wanted) => Cow::Owned(scatter(&x, wanted, rows, write)),
        }
    }

    /// The wanted rows of `x + chain(x)`.
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let what = HeldInputs::between_passes(self.recompute);
        let Some((last, before)) = self.chain.split_last() else {
            bail!("residual: a branch without operations")
        };
        let mut inputs = ChainInputs::default();
        let input = self
            .pick(inputs.run(x, rows, before, what)?.into(), rows)
            .into_owned();
        let width = x.len() / rows.max(1);
        let mut sum = match &self.wanted {
            None => rows::copied(x),
            Some(wanted) => gather(x, width, wanted),
        };
        let count = sum.len() / width.max(1);
        add_result(&mut sum, &input, count, last)?;
        if self.recompute == Recompute::None {
            inputs.hold_last(input, &self.chain, what, &self.wanted);
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(inputs);
        }
        Ok(sum)
    }

    /// The inputs of the operations: those that were held, or computed again.
    fn inputs(&self, x: &[f32], rows: usize) -> Result<ChainInputs> {
        let held = self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(inputs) = held {
            return Ok(inputs);
        }
        let (before, what) = (&self.chain[..self.chain.len() - 1], HeldInputs::Everything);
        let mut inputs = ChainInputs::default();
        let input = inputs.run(x, rows, before, what)?;
        let input = self.pick(input.into(), rows).into_owned();
        inputs.hold_last(input, &self.chain, what, &self.wanted);
        Ok(inputs)
    }

    /// The gradient of `x`: that of the branch plus `dy`.
    fn backward(&self, x: &[f32], dy: &[f32], rows: usize) -> Result<Vec<f32>> {
        let mut inputs = self.inputs(x, rows)?;
        let last = self.chain.len() - 1;
        let (mut grad, mut y) = (Cow::Borrowed(dy), Vec::new());
        for (i, link) in self.chain.iter().enumerate().rev() {
            let input = match i {
                0 => Vec::new(),
                _ => inputs.take(i, x, rows, &self.chain)?,
            };
            let from = match i {
                0 if i == last => self.pick(x.into(), rows),
                0 => x.into(),
                _ => Cow::Borrowed(&input[..]),
            };
            let count = match (i == last, &self.wanted) {
                (true, Some(wanted)) => wanted.len(),
                _ => rows,
            };
            grad = Cow::Owned(profiled(link.names()[1], || {
                link.backward(&from, &y, grad, count)
            })?);
            y = input;
            if i == last {
                // Rows that are not wanted have no gradient, whatever their output was.
                grad = self.unpick(grad, rows, Write::Add);
                y = self.unpick(y.into(), rows, Write::Set).into_owned();
            }
        }
        let mut grad = grad.into_owned();
        rows::add(&mut grad, &self.unpick(dy.into(), rows, Write::Add));
        Ok(grad)
    }
}

struct Residuals {
    branches: Vec<Residual>,
    /// Inputs of all branches but the first, kept from the forward pass for the backward pass.
    between: Mutex<Option<Vec<Vec<f32>>>>,
}

impl Residuals {
    /// The result of each branch; rows have `width` columns.
    fn results(&self, x: &[f32], width: usize) -> Result<Vec<Vec<f32>>> {
        let mut results: Vec<Vec<f32>> = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let from = results.last().map_or(x, Vec::as_slice);
            let result = branch.forward(from, from.len() / width.max(1))?;
            results.push(result);
        }
        Ok(results)
    }

    /// The inputs of all branches but the first: the kept ones, or the same computed again.
    fn between(&self, x: &[f32], width: usize) -> Result<Vec<Vec<f32>>> {
        let mut held = self.between.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(between) = held.take() {
            return Ok(between);
        }
        let mut results = self.results(x, width)?;
        results.pop();
        Ok(results)
    }

    fn backward(&self, x: &[f32], dy: &[f32], width: usize) -> Result<Vec<f32>> {
        let mut between = self.between(x, width)?;
        let mut grad = Cow::Borrowed(dy);
        for branch in self.branches.iter().rev() {
            let input = between.pop();
            let from = input.as_deref().unwrap_or(x);
            grad = Cow::Owned(branch.backward(from, &grad, from.len() / width.max(1))?);
        }
        Ok(grad.into_owned())
    }
}

impl CustomOp1 for Residuals {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows) = (storage::slice(s, l)?, storage::rows(l.dims()));
        let width = x.len() / rows.max(1);
        let mut results = self.results(x, width)?;
        let y = results.pop().unwrap_or_else(|| x.to_vec());
        *self.between.lock().unwrap_or_else(PoisonError::into_inner) = Some(results);
        let shape = Shape::from((y.len() / width.max(1), width));
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (dy, rows) = (dy.contiguous()?, storage::rows(x.dims()));
        let (from, grad) = (storage::open(x)?, storage::open(&dy)?);
        let width = from.slice().len() / rows.max(1);
        let dx = self.backward(from.slice(), grad.slice(), width)?;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::ops::activation::gelu_link;

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Against candle's own graph of x + gelu(x) and a second such branch on some rows. A second
    /// backward pass has to compute kept inputs again.
    #[test]
    fn branches_in_one_node_are_those_of_a_graph() {
        let x: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.7).collect();
        let x = Var::from_vec(x, (3, 4), &Device::Cpu).unwrap();
        let rows = [2u32, 0];
        let wanted = Tensor::new(&rows, &Device::Cpu).unwrap();
        let once = (x.as_tensor() + x.gelu_erf().unwrap()).unwrap();
        let some = once.index_select(&wanted, 0).unwrap();
        let expected = (&some + some.gelu_erf().unwrap()).unwrap();
        let loss = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap();
        let expected_grad = loss(&expected).backward().unwrap();
        for recompute in [Recompute::None, Recompute::Block] {
            let branches = [None, Some(Arc::from(rows))].map(|wanted| Branch {
                chain: vec![gelu_link()],
                wanted,
            });
            let y = residuals(&x, branches.into(), recompute).unwrap();
            let near = |a: &Tensor, b: &Tensor| {
                values(a)
                    .iter()
                    .zip(values(b))
                    .all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs()))
            };
            assert!(near(&y, &expected), "{recompute:?}");
            for _ in 0..2 {
                let grads = loss(&y).backward().unwrap();
                let [found, wanted] = [&grads, &expected_grad].map(|all| all.get(&x).unwrap());
                assert!(near(found, wanted), "{recompute:?}");
            }
        }
    }
}
