//! The head's operation: logits in chunks of rows, replaced in place by their gradients in the
//! backward pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use kernels::arguments::Columns;

use super::{HELD, Target, check, chunk_rows};
use crate::ops::backend::Backend;
use crate::ops::linear::{Linear, Projection};
use crate::ops::operation::Operation;
use crate::ops::param::Param;
use crate::ops::place::{MaybeOwned, Place, enter, read, tensor};
use crate::ops::profile;

/// The part of the head's operation that a place computes its own way: from rows of logits to the
/// results of their targets, and back.
pub(super) trait HeadPlace: Place {
    /// Targets of a chunk, where the place reads them.
    type Targets: Send + Sync;

    /// Brings targets to the place.
    fn targets(targets: &[Target], vocabulary: usize, backend: &Backend) -> Result<Self::Targets>;

    /// Writes the results of each target, `[targets, columns]`, from logits `[targets,
    /// vocabulary]`.
    fn write_results(
        logits: Self::View<'_>,
        targets: &Self::Targets,
        results: Columns,
        inv_temperature: f32,
        out: Self::ViewMut<'_>,
    ) -> Result<()>;

    /// Replaces logits by their gradients, given those of the results.
    fn differentiate(
        logits: Self::ViewMut<'_>,
        targets: &Self::Targets,
        gradients: Self::View<'_>,
        results: Columns,
        inv_temperature: f32,
    ) -> Result<()>;
}

/// The results of each target: `[targets, columns]`.
pub(super) fn head_results<P: HeadPlace>(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: Columns,
) -> Result<Tensor>
where
    Linear: Operation<P>,
{
    check(hidden, head, targets)?;
    let (hidden, backend) = (hidden.contiguous()?, head.backend().clone());
    let room = if hidden.track_op() { HELD } else { 0 };
    let operation = HeadOperation::<P>::new(head, targets, 1.0 / temperature, results, room)?;
    let out = read::<P, _>(&hidden, &backend, |hidden| operation.forward(hidden))?;
    let (shape, own) = ((targets.len(), results.count()), backend.clone());
    enter::<P>(
        "token_log_probs",
        &hidden,
        out,
        shape,
        &backend,
        move |hidden, _, grad| {
            let dh = read::<P, _>(hidden, &own, |hidden| {
                read::<P, _>(grad, &own, |grad| operation.backward(hidden, grad))
            })?;
            tensor::<P>(dh, hidden.dims(), &own)
        },
    )
}

struct HeadOperation<P: HeadPlace> {
    layer: Linear,
    /// Vocabulary size and width of the head.
    shape: (usize, usize),
    chunks: Vec<TargetChunk<P>>,
    inv_temperature: f32,
    results: Columns,
    /// Number of logits that may be kept; 0 without a backward pass.
    room: usize,
    /// Logits kept for the backward pass, by the number of their chunk.
    held: Mutex<BTreeMap<usize, P::Rows>>,
}

/// Targets whose logits are in memory together.
struct TargetChunk<P: HeadPlace> {
    targets: P::Targets,
    /// Row of the hidden states of each target.
    rows: Vec<u32>,
}

impl<P: HeadPlace> TargetChunk<P> {
    /// The hidden rows of the targets: `[targets, width]`.
    fn hidden<'a>(&self, hidden: P::View<'a>, width: usize) -> Result<MaybeOwned<'a, P>> {
        let first = self.rows.first().map_or(0, |&row| row as usize);
        let consecutive = |(i, &row): (usize, &u32)| row as usize == first + i;
        if self.rows.iter().enumerate().all(consecutive) {
            let range = first * width..(first + self.rows.len()) * width;
            return Ok(MaybeOwned::Borrowed(P::part(hidden, range)));
        }
        P::gather(hidden, width, &self.rows).map(MaybeOwned::Owned)
    }
}

impl<P: HeadPlace> HeadOperation<P>
where
    Linear: Operation<P>,
{
    fn new(
        head: &Arc<Param>,
        targets: &[Target],
        inv_temperature: f32,
        results: Columns,
        room: usize,
    ) -> Result<Self> {
        let vocabulary = head.dims()[0];
        let chunk = |targets: &[Target]| {
            Ok(TargetChunk {
                targets: P::targets(targets, vocabulary, head.backend())?,
                rows: targets.iter().map(|target| target.row as u32).collect(),
            })
        };
        let chunks = targets.chunks(chunk_rows(vocabulary));
        Ok(Self {
            layer: Linear::new(vec![Projection::new(head.clone(), None)])?,
            shape: (vocabulary, head.dims()[1]),
            chunks: chunks.map(chunk).collect::<Result<_>>()?,
            inv_temperature,
            results,
            room,
            held: Mutex::default(),
        })
    }

    fn targets(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows.len()).sum()
    }

    /// The logits of a chunk's hidden rows: `[targets, vocabulary]`.
    fn logits(&self, rows: P::View<'_>, count: usize) -> Result<P::Rows> {
        Operation::<P>::forward(&self.layer, rows, count)
    }

    /// Keeps a chunk's logits for the backward pass if there is room.
    fn hold(&self, chunk: usize, logits: P::Rows) {
        let len = |logits: &P::Rows| P::len(P::view(logits));
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(len).sum();
        if count + len(&logits) <= self.room {
            held.insert(chunk, logits);
        }
    }

    /// A chunk's logits, if they were kept.
    fn take_held(&self, chunk: usize) -> Option<P::Rows> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&chunk)
    }

    fn forward(&self, hidden: P::View<'_>) -> Result<P::Rows> {
        let span = profile::span("head");
        let (vocabulary, width) = self.shape;
        span.wrote(self.targets() * vocabulary);
        let mut out = P::zeros(hidden, self.targets() * self.results.count())?;
        self.write_results(hidden, P::view_mut(&mut out), width)?;
        Ok(out)
    }

    fn write_results(
        &self,
        hidden: P::View<'_>,
        mut out: P::ViewMut<'_>,
        width: usize,
    ) -> Result<()> {
        for (i, chunk) in self.chunks.iter().enumerate() {
            let count = chunk.rows.len();
            let rows = chunk.hidden(P::shorter(hidden), width)?;
            let logits = self.logits(rows.view(), count)?;
            let (to, behind) = P::split(out, count * self.results.count());
            let (targets, t) = (&chunk.targets, self.inv_temperature);
            P::write_results(P::view(&logits), targets, self.results, t, to)?;
            out = behind;
            self.hold(i, logits);
        }
        Ok(())
    }

    fn backward(&self, hidden: P::View<'_>, gradients: P::View<'_>) -> Result<P::Rows> {
        let span = profile::span("head backward");
        let (vocabulary, width) = self.shape;
        span.wrote(self.targets() * vocabulary);
        let mut dh = P::zeros(hidden, P::len(hidden))?;
        let mut at = 0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let count = chunk.rows.len();
            let rows = chunk.hidden(P::shorter(hidden), width)?;
            let mut logits = match self.take_held(i) {
                Some(logits) => logits,
                None => self.logits(rows.view(), count)?,
            };
            let of_chunk = at..at + count * self.results.count();
            at = of_chunk.end;
            let given = P::part(P::shorter(gradients), of_chunk);
            let (targets, t) = (&chunk.targets, self.inv_temperature);
            P::differentiate(P::view_mut(&mut logits), targets, given, self.results, t)?;
            let (none, dlogits) = (P::part(rows.view(), 0..0), MaybeOwned::Owned(logits));
            let part = Operation::<P>::backward(&self.layer, rows.view(), none, dlogits, count)?;
            P::scatter_add(P::view_mut(&mut dh), P::view(&part), width, &chunk.rows)?;
        }
        Ok(dh)
    }
}
