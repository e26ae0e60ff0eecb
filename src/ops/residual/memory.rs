//! The activations that a residual branch keeps for its backward pass, and the memory of both.
//!
//! A pass keeps, and a plan counts, what [`HeldInputs::holds`] says. Counted are the `f32` values
//! of one row, in the case that all rows are wanted. Memory that does not grow with the rows, such
//! as packed panels and the scratch of threads, is not counted.

use crate::config::Recompute;
use crate::ops::operation::OperationKind;

/// Inputs of a chain's operations that are kept while it runs.
#[derive(Clone, Copy)]
pub(super) enum HeldInputs {
    Nothing,
    /// All except the results of cheap operations.
    Costly,
    Everything,
}

impl HeldInputs {
    /// The inputs that are kept from the forward pass to the backward pass.
    pub(super) fn between_passes(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self::Costly,
            Recompute::Block => Self::Nothing,
        }
    }

    /// Whether the result of operation `made` is kept as the input of operation `next`.
    pub(super) fn holds(self, made: OperationKind, next: OperationKind) -> bool {
        let wanted = match self {
            Self::Nothing => false,
            Self::Costly => !made.is_cheap(),
            Self::Everything => true,
        };
        wanted && !next.overwrites_input()
    }
}

/// A residual branch whose memory is counted.
#[derive(Clone, Debug)]
pub struct BranchMemory {
    /// Columns of the residual stream.
    pub hidden: usize,
    /// Kinds of the branch's operations, in order.
    pub chain: Vec<OperationKind>,
    /// Whether the branch runs again in the backward pass.
    pub recompute: Recompute,
}

impl BranchMemory {
    /// Columns that are held from the forward pass to the backward pass: the branch's input, and
    /// the kept inputs of its operations.
    pub fn held(&self) -> usize {
        let kept = self.kept(HeldInputs::between_passes(self.recompute));
        self.hidden + kept.iter().sum::<usize>()
    }

    /// The largest number of columns that the backward pass of an operation adds to
    /// [`Self::held`]: inputs that are computed again, gradients of its input and its result, and
    /// the buffers of adapters. The gradient of the branch's result is not among them.
    pub fn backward(&self) -> usize {
        let inputs = self.inputs();
        let held = self.kept(HeldInputs::between_passes(self.recompute));
        let all = self.kept(HeldInputs::Everything);
        let last = self.chain.len().saturating_sub(1);
        let at = |i: usize| {
            // A chain that runs again has all inputs at first. Otherwise each input is computed
            // when its operation is reached. The operation before still reads it as its result.
            let first = match self.recompute {
                Recompute::None => i,
                Recompute::Block => 0,
            };
            let again = (first..=last.min(i + 1)).map(|j| all[j] - held[j]);
            let result = match i == last || self.chain[i].overwrites_gradient() {
                true => 0,
                false => inputs[i + 1],
            };
            again.sum::<usize>() + inputs[i] + result + self.chain[i].backward_buffers()
        };
        (0..self.chain.len()).map(at).max().unwrap_or(0)
    }

    /// Columns of the input of each operation.
    fn inputs(&self) -> Vec<usize> {
        let next = |columns: &mut usize, kind: &OperationKind| {
            let outputs = kind.outputs(*columns);
            Some(std::mem::replace(columns, outputs))
        };
        self.chain.iter().scan(self.hidden, next).collect()
    }

    /// Columns of the input of each operation where it is kept, and 0 where it is not. The input of
    /// the first operation is the branch's.
    fn kept(&self, what: HeldInputs) -> Vec<usize> {
        let mut columns = self.inputs();
        for (i, columns) in columns.iter_mut().enumerate() {
            if i == 0 || !what.holds(self.chain[i - 1], self.chain[i]) {
                *columns = 0;
            }
        }
        columns
    }
}
