//! `x + f(x)` as one node of the graph, for an `f` that is a chain of our operations.
//!
//! In candle's graph each edge between operations costs a zero-filled buffer and an addition on the way back. Inside a residual
//! branch every result has one reader, so the chain is walked by hand: the backward of each operation gets the gradient that the
//! next one returned. What is held for it is the input of each operation, but for results of cheap ones, which are computed again,
//! and those that the next one overwrote. With [`Keep::Input`] only `x` is held and the chain runs again on the way back
//! (Chen et al. 2016, §4).

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::operation::{Link, noted};
use super::storage;

/// What a branch holds for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The inputs of its operations.
    All,
    /// The branch's input alone.
    Input,
}

/// `x + chain(x)` on the CPU, as one node of the graph. The chain's result must have `x`'s shape.
///
/// # Errors
/// Those of the operations.
pub fn residual(x: &Tensor, chain: Vec<Link>, keep: Keep) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Residual {
        chain,
        keep,
        held: Mutex::new(None),
    })
}

/// `x += chain(x)`, for `[rows, width]` and without a backward pass.
///
/// # Errors
/// Those of the operations.
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
/// Those of the operations.
pub fn run(x: &[f32], rows: usize, chain: &[Link]) -> Result<Vec<f32>> {
    Inputs::default().run(x, rows, chain, Held::Nothing)
}

/// `sum += link(x)`
///
/// # Errors
/// Those of the operation.
pub fn add_result(sum: &mut [f32], x: &[f32], rows: usize, link: &Link) -> Result<()> {
    noted(link.names()[0], || {
        link.forward_add(x, rows, sum)?;
        Ok(Vec::new())
    })?;
    Ok(())
}

/// Which inputs a run holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// Not those that cheap operations made.
    Costly,
    Everything,
}

/// The input of each operation of a chain, where it is held; the first one's is the branch's.
#[derive(Default)]
struct Inputs(Vec<Option<Vec<f32>>>);

impl Inputs {
    /// Runs a chain and returns its result.
    fn run(&mut self, x: &[f32], rows: usize, chain: &[Link], what: Held) -> Result<Vec<f32>> {
        let mut current = None::<Vec<f32>>;
        for (i, link) in chain.iter().enumerate() {
            let in_place = link.traits().in_place;
            current = Some(match current.take() {
                None => {
                    self.0.push(None);
                    noted(link.names()[0], || link.forward(x, rows))?
                }
                Some(input) if in_place => {
                    self.0.push(None);
                    noted(link.names()[0], || link.forward_owned(input, rows))?
                }
                Some(input) => {
                    let next = noted(link.names()[0], || link.forward(&input, rows))?;
                    let cheap = chain[i - 1].traits().cheap;
                    let hold = what == Held::Everything || what == Held::Costly && !cheap;
                    self.0.push(hold.then_some(input));
                    next
                }
            });
        }
        Ok(current.unwrap_or_else(|| x.to_vec()))
    }

    /// Holds the input of the last operation, unless it is cheap to make again from the `before`.
    fn hold_last(&mut self, input: Vec<f32>, before: &[Link]) {
        let costly = before.last().is_some_and(|made| !made.traits().cheap);
        self.0.push(costly.then_some(input));
    }

    /// The input of operation `i`: `x`, held, computed again, or (where nobody reads it) nothing.
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
            _ if chain[i].traits().in_place => Ok(Cow::Borrowed(&[])),
            _ => {
                let (before, input) = (&chain[i - 1], self.of(i - 1, x, rows, chain)?);
                let again = noted(before.names()[0], || before.forward(&input, rows))?;
                Ok(Cow::Owned(again))
            }
        }
    }

    /// [`Self::of`], given away; for an operation behind the first.
    fn take(&mut self, i: usize, x: &[f32], rows: usize, chain: &[Link]) -> Result<Vec<f32>> {
        match self.0[i].take() {
            Some(input) => Ok(input),
            None => Ok(self.of(i, x, rows, chain)?.into_owned()),
        }
    }
}

struct Residual {
    chain: Vec<Link>,
    keep: Keep,
    /// From the forward pass to the backward pass.
    held: Mutex<Option<Inputs>>,
}

impl Residual {
    /// The branch's gradient and `dy`, added.
    fn backward(&self, x: &[f32], dy: &[f32], rows: usize) -> Result<Vec<f32>> {
        let held = self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut inputs = match held {
            Some(inputs) => inputs,
            None => {
                let before = &self.chain[..self.chain.len() - 1];
                let mut inputs = Inputs::default();
                let input = inputs.run(x, rows, before, Held::Everything)?;
                inputs.0.push((!before.is_empty()).then_some(input));
                inputs
            }
        };
        let (mut grad, mut y) = (Cow::Borrowed(dy), Vec::new());
        for (i, link) in self.chain.iter().enumerate().rev() {
            let input = match i {
                0 => Vec::new(),
                _ => inputs.take(i, x, rows, &self.chain)?,
            };
            let from = if i == 0 { x } else { &input };
            grad = Cow::Owned(noted(link.names()[1], || {
                link.backward(from, &y, grad, rows)
            })?);
            y = input;
        }
        let mut grad = grad.into_owned();
        storage::add(&mut grad, dy);
        Ok(grad)
    }
}

impl CustomOp1 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows) = (storage::slice(s, l)?, storage::rows(l.dims()));
        let what = match self.keep {
            Keep::All => Held::Costly,
            Keep::Input => Held::Nothing,
        };
        let Some((last, before)) = self.chain.split_last() else {
            bail!("residual: a branch without operations")
        };
        let mut inputs = Inputs::default();
        let input = inputs.run(x, rows, before, what)?;
        let mut sum = storage::copied(x);
        add_result(&mut sum, &input, rows, last)?;
        if self.keep == Keep::All {
            inputs.hold_last(input, before);
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(inputs);
        }
        Ok((CpuStorage::F32(sum), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (dy, rows) = (dy.contiguous()?, storage::rows(x.dims()));
        let (from, grad) = (storage::open(x)?, storage::open(&dy)?);
        let dx = self.backward(from.slice(), grad.slice(), rows)?;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}
