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

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use kernels::host::product::Write;

use super::backend::Backend;
use super::operation::{ChainPlace, Link, profiled};
use super::place::{Gpu, Host, MaybeOwned, enter, read, tensor};
use super::profile;
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

/// Runs branches one after the other, as one node of the graph; `recompute` says whether each
/// branch keeps its activations or runs again in the backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn residuals(
    x: &Tensor,
    branches: Vec<Branch>,
    recompute: Recompute,
    backend: &Backend,
) -> Result<Tensor> {
    match backend {
        Backend::Gpu(..) => residuals_in::<Gpu>(x, branches, recompute, backend),
        Backend::Host(_) | Backend::Composed(_) => {
            residuals_in::<Host>(x, branches, recompute, backend)
        }
    }
}

fn residuals_in<P: ChainPlace>(
    x: &Tensor,
    branches: Vec<Branch>,
    recompute: Recompute,
    backend: &Backend,
) -> Result<Tensor> {
    let branch = |Branch { chain, wanted }| Residual::<P> {
        chain,
        recompute,
        wanted,
        held: Mutex::default(),
    };
    let all = Residuals::<P> {
        branches: branches.into_iter().map(branch).collect(),
        between: Mutex::default(),
    };
    let (x, width) = (x.contiguous()?, x.dims2()?.1);
    let y = read::<P, _>(&x, backend, |x| all.forward(x, width))?;
    let rows = P::len(P::view(&y)) / width.max(1);
    let own = backend.clone();
    enter::<P>(
        "residual",
        &x,
        y,
        (rows, width),
        backend,
        move |x, _, dy| {
            let dx = read::<P, _>(x, &own, |x| {
                read::<P, _>(dy, &own, |dy| all.backward(x, dy, width))
            })?;
            tensor::<P>(dx, x.dims(), &own)
        },
    )
}

/// `x += chain(x)`, for `[rows, width]` and without a backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn add_branch<P: ChainPlace>(x: &mut P::Rows, rows: usize, chain: &[Link]) -> Result<()> {
    let Some((last, before)) = chain.split_last() else {
        return Ok(());
    };
    let input = run::<P>(P::view(x), rows, before)?;
    add_result::<P>(P::view_mut(x), P::view(&input), rows, last)
}

/// `chain(x)`, without a backward pass.
///
/// # Errors
/// Errors of the operations.
pub fn run<P: ChainPlace>(x: P::View<'_>, rows: usize, chain: &[Link]) -> Result<P::Rows> {
    ChainInputs::<P>::default().run(x, rows, chain, HeldInputs::Nothing)
}

/// `sum += link(x)`
///
/// # Errors
/// Errors of the operation.
pub fn add_result<P: ChainPlace>(
    sum: P::ViewMut<'_>,
    x: P::View<'_>,
    rows: usize,
    link: &Link,
) -> Result<()> {
    let _span = profile::span(link.names()[0]);
    P::operation(link).forward_add(x, rows, sum)
}

/// The kept inputs of a chain's operations. The input of the first operation, which is the
/// branch's, is not among them.
struct ChainInputs<P: ChainPlace>(Vec<Option<P::Rows>>);

impl<P: ChainPlace> Default for ChainInputs<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P: ChainPlace> ChainInputs<P> {
    /// Runs a chain, keeps inputs as `what` says, and returns the result.
    fn run(
        &mut self,
        x: P::View<'_>,
        rows: usize,
        chain: &[Link],
        what: HeldInputs,
    ) -> Result<P::Rows> {
        let mut current = None::<P::Rows>;
        for (i, link) in chain.iter().enumerate() {
            let (kind, name, operation) = (link.kind(), link.names()[0], P::operation(link));
            current = Some(match current.take() {
                None => {
                    self.0.push(None);
                    profiled::<P>(name, || operation.forward(x, rows))?
                }
                Some(input) if kind.overwrites_input() => {
                    self.0.push(None);
                    profiled::<P>(name, || operation.forward_owned(input, rows))?
                }
                Some(input) => {
                    let next = profiled::<P>(name, || operation.forward(P::view(&input), rows))?;
                    let hold = what.holds(chain[i - 1].kind(), kind);
                    self.0.push(hold.then_some(input));
                    next
                }
            });
        }
        match current {
            Some(result) => Ok(result),
            None => P::copied(x),
        }
    }

    /// Keeps the input of the chain's last operation if `what` says so, or if it has the wanted
    /// rows alone, from which no operation can compute it again.
    fn hold_last(&mut self, input: P::Rows, chain: &[Link], what: HeldInputs, wanted: &WantedRows) {
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
        x: P::View<'a>,
        rows: usize,
        chain: &[Link],
    ) -> Result<MaybeOwned<'a, P>> {
        match (i, &self.0[i]) {
            (0, _) => Ok(MaybeOwned::Borrowed(x)),
            (_, Some(input)) => Ok(MaybeOwned::Borrowed(P::view(input))),
            _ if chain[i].kind().overwrites_input() => Ok(MaybeOwned::Borrowed(P::part(x, 0..0))),
            _ => {
                let (before, input) = (&chain[i - 1], self.of(i - 1, x, rows, chain)?);
                let again = || P::operation(before).forward(input.view(), rows);
                profiled::<P>(before.names()[0], again).map(MaybeOwned::Owned)
            }
        }
    }

    /// [`Self::of`] by value, for an operation after the first.
    fn take(&mut self, i: usize, x: P::View<'_>, rows: usize, chain: &[Link]) -> Result<P::Rows> {
        match self.0[i].take() {
            Some(input) => Ok(input),
            None => self.of(i, P::shorter(x), rows, chain)?.into_owned(),
        }
    }
}

struct Residual<P: ChainPlace> {
    chain: Vec<Link>,
    recompute: Recompute,
    wanted: WantedRows,
    /// Inputs kept from the forward pass for the backward pass.
    held: Mutex<Option<ChainInputs<P>>>,
}

impl<P: ChainPlace> Residual<P> {
    /// The wanted rows of `x`.
    fn pick<'a>(&self, x: MaybeOwned<'a, P>, rows: usize) -> Result<MaybeOwned<'a, P>> {
        let Some(wanted) = &self.wanted else {
            return Ok(x);
        };
        let width = P::len(x.view()) / rows.max(1);
        P::gather(x.view(), width, wanted).map(MaybeOwned::Owned)
    }

    /// All rows, given the wanted ones.
    fn unpick<'a>(
        &self,
        x: MaybeOwned<'a, P>,
        rows: usize,
        write: Write,
    ) -> Result<MaybeOwned<'a, P>> {
        match &self.wanted {
            None => Ok(x),
            Some(wanted) => P::scatter(x.view(), wanted, rows, write).map(MaybeOwned::Owned),
        }
    }

    /// The wanted rows of `x + chain(x)`.
    fn forward(&self, x: P::View<'_>, rows: usize) -> Result<P::Rows> {
        let what = HeldInputs::between_passes(self.recompute);
        let Some((last, before)) = self.chain.split_last() else {
            bail!("residual: a branch without operations")
        };
        let mut inputs = ChainInputs::default();
        let input = MaybeOwned::Owned(inputs.run(x, rows, before, what)?);
        let input = self.pick(input, rows)?.into_owned()?;
        let mut sum = self.pick(MaybeOwned::Borrowed(x), rows)?.into_owned()?;
        let count = self.wanted.as_ref().map_or(rows, |wanted| wanted.len());
        add_result::<P>(P::view_mut(&mut sum), P::view(&input), count, last)?;
        if self.recompute == Recompute::None {
            inputs.hold_last(input, &self.chain, what, &self.wanted);
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(inputs);
        }
        Ok(sum)
    }

    /// The inputs of the operations: those that were held, or computed again.
    fn inputs(&self, x: P::View<'_>, rows: usize) -> Result<ChainInputs<P>> {
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
        let input = MaybeOwned::Owned(inputs.run(x, rows, before, what)?);
        let input = self.pick(input, rows)?.into_owned()?;
        inputs.hold_last(input, &self.chain, what, &self.wanted);
        Ok(inputs)
    }

    /// The gradient of `x`: that of the branch plus `dy`.
    fn backward(&self, x: P::View<'_>, dy: P::View<'_>, rows: usize) -> Result<P::Rows> {
        let mut inputs = self.inputs(x, rows)?;
        let last = self.chain.len() - 1;
        let mut grad = MaybeOwned::<P>::Borrowed(dy);
        let mut y = None::<P::Rows>;
        for (i, link) in self.chain.iter().enumerate().rev() {
            let input = match i {
                0 => None,
                _ => Some(inputs.take(i, x, rows, &self.chain)?),
            };
            let from = match &input {
                Some(input) => MaybeOwned::Borrowed(P::view(input)),
                None if i == last => self.pick(MaybeOwned::Borrowed(P::shorter(x)), rows)?,
                None => MaybeOwned::Borrowed(P::shorter(x)),
            };
            let count = match (i == last, &self.wanted) {
                (true, Some(wanted)) => wanted.len(),
                _ => rows,
            };
            let to = match &y {
                Some(y) => P::view(y),
                None => P::part(P::shorter(x), 0..0),
            };
            grad = MaybeOwned::Owned(profiled::<P>(link.names()[1], || {
                P::operation(link).backward(from.view(), to, grad, count)
            })?);
            drop(from);
            y = input;
            if i == last {
                // Rows that are not wanted have no gradient, whatever their output was.
                grad = self.unpick(grad, rows, Write::Add)?;
                y = match y.map(MaybeOwned::Owned) {
                    Some(y) => Some(self.unpick(y, rows, Write::Set)?.into_owned()?),
                    None => None,
                };
            }
        }
        let mut grad = grad.into_owned()?;
        let dy = self.unpick(MaybeOwned::Borrowed(dy), rows, Write::Add)?;
        P::add(P::view_mut(&mut grad), dy.view())?;
        Ok(grad)
    }
}

struct Residuals<P: ChainPlace> {
    branches: Vec<Residual<P>>,
    /// Inputs of all branches but the first, kept from the forward pass for the backward pass.
    between: Mutex<Option<Vec<P::Rows>>>,
}

impl<P: ChainPlace> Residuals<P> {
    /// The result of each branch; rows have `width` columns.
    fn results(&self, x: P::View<'_>, width: usize) -> Result<Vec<P::Rows>> {
        let mut results: Vec<P::Rows> = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let from = match results.last() {
                Some(result) => P::view(result),
                None => P::shorter(x),
            };
            let result = branch.forward(from, P::len(from) / width.max(1))?;
            results.push(result);
        }
        Ok(results)
    }

    /// The last branch's result; the others are kept for the backward pass.
    fn forward(&self, x: P::View<'_>, width: usize) -> Result<P::Rows> {
        let mut results = self.results(x, width)?;
        let result = results.pop();
        *self.between.lock().unwrap_or_else(PoisonError::into_inner) = Some(results);
        match result {
            Some(result) => Ok(result),
            None => P::copied(x),
        }
    }

    /// The inputs of all branches but the first: the kept ones, or the same computed again.
    fn between(&self, x: P::View<'_>, width: usize) -> Result<Vec<P::Rows>> {
        let mut held = self.between.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(between) = held.take() {
            return Ok(between);
        }
        let mut results = self.results(x, width)?;
        results.pop();
        Ok(results)
    }

    fn backward(&self, x: P::View<'_>, dy: P::View<'_>, width: usize) -> Result<P::Rows> {
        let mut between = self.between(x, width)?;
        let mut grad = MaybeOwned::<P>::Borrowed(dy);
        for branch in self.branches.iter().rev() {
            let input = between.pop();
            let from = match &input {
                Some(input) => P::view(input),
                None => P::shorter(x),
            };
            let rows = P::len(from) / width.max(1);
            grad = MaybeOwned::Owned(branch.backward(from, grad.view(), rows)?);
        }
        grad.into_owned()
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
            let y = residuals(&x, branches.into(), recompute, &Backend::CPU).unwrap();
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
