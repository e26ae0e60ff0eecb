//! The head's operation on the CPU: logits in chunks of rows, replaced in place by their gradients
//! in the backward pass.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use kernels::arguments::Columns;
use kernels::host::logits::{self, RowTarget};
use kernels::host::product::{Matrix, Weight, Write, multiplied, product, with_factor};
use kernels::host::rows;

use super::{HELD, Target, check, chunk_rows};
use crate::ops::param::Param;
use crate::ops::profile;
use crate::ops::storage;

/// The results of each target: `[targets, columns]`.
pub(super) fn fused(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: Columns,
) -> Result<Tensor> {
    check(hidden, head, targets)?;
    let op = HeadOperation {
        head: head.clone(),
        targets: targets.into(),
        inv_temperature: 1.0 / temperature,
        results,
        room: if hidden.track_op() { HELD } else { 0 },
        held: Mutex::default(),
    };
    hidden.contiguous()?.apply_op1(op)
}

struct HeadOperation {
    head: Arc<Param>,
    targets: Box<[Target]>,
    inv_temperature: f32,
    results: Columns,
    /// Number of logits that may be kept; 0 without a backward pass.
    room: usize,
    /// Logits kept for the backward pass, by the number of their chunk.
    held: Mutex<BTreeMap<usize, Vec<f32>>>,
}

impl HeadOperation {
    /// Vocabulary size and width of the head.
    fn shape(&self) -> (usize, usize) {
        (self.head.dims()[0], self.head.dims()[1])
    }

    /// The hidden rows of a chunk of targets: `[targets, width]`.
    fn rows<'a>(&self, hidden: &'a [f32], targets: &[Target]) -> Cow<'a, [f32]> {
        let (_, width) = self.shape();
        let first = targets.first().map_or(0, |t| t.row);
        if targets.iter().enumerate().all(|(i, t)| t.row == first + i) {
            return Cow::Borrowed(&hidden[first * width..][..targets.len() * width]);
        }
        Cow::Owned(rows::gather(hidden, width, &ids(targets)))
    }

    /// The logits of a chunk's hidden rows: `[targets, vocabulary]`.
    fn logits(&self, rows: &[f32], weight: Weight) -> Vec<f32> {
        let (_, width) = self.shape();
        let rows = Matrix::new(rows, rows.len() / width, width, width);
        product(self.head.products(), rows, &[weight])
    }

    /// Keeps a chunk's logits for the backward pass if there is room.
    fn hold(&self, chunk: usize, logits: Vec<f32>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(Vec::len).sum();
        if count + logits.len() <= self.room {
            held.insert(chunk, logits);
        }
    }

    /// A chunk's logits, if they were kept.
    fn take_held(&self, chunk: usize) -> Option<Vec<f32>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&chunk)
    }

    fn backward_chunk(
        &self,
        hidden: &[f32],
        targets: &[Target],
        grads: &[f32],
        weight: Weight,
        held: Option<Vec<f32>>,
        dh: &mut [f32],
    ) -> Result<()> {
        let (vocabulary, width) = self.shape();
        let rows = self.rows(hidden, targets);
        let mut logits = held.unwrap_or_else(|| self.logits(&rows, weight));
        let tokens: Vec<RowTarget> = targets.iter().map(Target::token_of_row).collect();
        logits::backward(
            &mut logits,
            &tokens,
            grads,
            self.results,
            self.inv_temperature,
        );
        let dlogits = Matrix::new(&logits, targets.len(), vocabulary, vocabulary);
        let part = storage::read(self.head.value(), |w| {
            let head = Matrix::new(w, vocabulary, width, width);
            multiplied(self.head.products(), dlogits, head)
        })?;
        rows::scatter(dh, width, &ids(targets), &part, Write::Add);
        let rows = Matrix::new(&rows, targets.len(), width, width);
        self.head.accumulate_with(|dw| {
            let kernel = self.head.products();
            with_factor(kernel, rows, |rows| rows.add_to(dlogits.t(), dw));
        })
    }
}

/// The hidden rows of targets.
fn ids(targets: &[Target]) -> Vec<u32> {
    targets.iter().map(|t| t.row as u32).collect()
}

impl CustomOp1 for HeadOperation {
    fn name(&self) -> &'static str {
        "token_log_probs"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let span = profile::span("head");
        let (hidden, operand) = (storage::slice(s, l)?, self.head.operand()?);
        let (vocabulary, _) = self.shape();
        let chunk = chunk_rows(vocabulary);
        span.wrote(self.targets.len() * self.shape().0);
        let columns = self.results.count();
        let mut out = vec![0f32; self.targets.len() * columns];
        let outs = out.chunks_mut(columns * chunk);
        let chunks = self.targets.chunks(chunk).zip(outs);
        for (i, (targets, out)) in chunks.enumerate() {
            let logits = self.logits(&self.rows(hidden, targets), operand.weight());
            let tokens: Vec<RowTarget> = targets.iter().map(Target::token_of_row).collect();
            logits::forward(&logits, &tokens, self.results, self.inv_temperature, out);
            self.hold(i, logits);
        }
        let shape = Shape::from((self.targets.len(), columns));
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, hidden: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let span = profile::span("head backward");
        let (grad, operand) = (grad.contiguous()?, self.head.operand()?);
        let chunk = chunk_rows(self.shape().0);
        span.wrote(self.targets.len() * self.shape().0);
        let mut dh = vec![0f32; hidden.elem_count()];
        storage::read(hidden, |hidden| {
            storage::read(&grad, |grad| {
                let grads = grad.chunks(self.results.count() * chunk);
                let chunks = self.targets.chunks(chunk).zip(grads);
                for (i, (targets, grads)) in chunks.enumerate() {
                    let (weight, held) = (operand.weight(), self.take_held(i));
                    self.backward_chunk(hidden, targets, grads, weight, held, &mut dh)?;
                }
                Ok::<_, candle_core::Error>(())
            })
        })???;
        Ok(Some(Tensor::from_vec(dh, hidden.dims(), hidden.device())?))
    }
}
