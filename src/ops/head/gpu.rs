//! The head's operation on a GPU: logits in chunks of rows, replaced in place by their gradients in
//! the backward pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use kernels::arguments::Columns as HeadResults;
use kernels::device::logits::{self, Targets};
use kernels::device::product::Receive;
use kernels::device::{Array, Gpu, Slice};

use super::{HELD, Target, check, chunk_rows};
use crate::ops::linear::gpu::{Columns, columns_mut};
use crate::ops::param::Param;
use crate::ops::place::{MaybeOwned, Place, enter, lift, read, tensor};
use crate::ops::profile;

/// The results of each target: `[targets, columns]`.
pub(super) fn on_device(
    hidden: &Tensor,
    head: &Arc<Param>,
    targets: &[Target],
    temperature: f32,
    results: HeadResults,
) -> Result<Tensor> {
    check(hidden, head, targets)?;
    let (hidden, backend) = (hidden.contiguous()?, head.backend());
    let operation = DeviceHead::new(head, targets, temperature, results, hidden.track_op())?;
    let out = read::<Gpu, _>(&hidden, backend, |hidden| operation.forward(hidden))?;
    let shape = (targets.len(), results.count());
    enter::<Gpu>(
        "token_log_probs",
        &hidden,
        out,
        shape,
        backend,
        move |hidden, _, grad| {
            let backend = operation.head.backend();
            let dh = read::<Gpu, _>(hidden, backend, |hidden| {
                read::<Gpu, _>(grad, backend, |grad| operation.backward(hidden, grad))
            })?;
            tensor::<Gpu>(dh, hidden.dims(), backend)
        },
    )
}

struct DeviceHead {
    head: Arc<Param>,
    chunks: Vec<TargetChunk>,
    inv_temperature: f32,
    results: HeadResults,
    /// Number of logits that may be kept; 0 without a backward pass.
    room: usize,
    /// Logits kept for the backward pass, by the number of their chunk.
    held: Mutex<BTreeMap<usize, Array<f32>>>,
}

/// Targets whose logits are in memory together.
struct TargetChunk {
    targets: Targets,
    /// Row of the hidden states of each target.
    rows: Vec<u32>,
}

impl TargetChunk {
    fn new(gpu: &Gpu, targets: &[Target], vocabulary: usize) -> Result<Self> {
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        let kept: Vec<&[u32]> = targets
            .iter()
            .map(|t| t.kept.as_deref().unwrap_or_default())
            .collect();
        Ok(Self {
            targets: lift(Targets::new(gpu, &tokens, &kept, vocabulary))?,
            rows: targets.iter().map(|t| t.row as u32).collect(),
        })
    }

    /// The hidden rows of the targets: `[targets, width]`.
    fn rows<'a>(&self, hidden: Slice<'a, f32>, width: usize) -> Result<MaybeOwned<'a, Gpu>> {
        let first = self.rows.first().map_or(0, |&row| row as usize);
        if self
            .rows
            .iter()
            .enumerate()
            .all(|(i, &row)| row as usize == first + i)
        {
            let range = first * width..(first + self.rows.len()) * width;
            return Ok(MaybeOwned::Borrowed(hidden.part(range)));
        }
        Gpu::gather(hidden, width, &self.rows).map(MaybeOwned::Owned)
    }
}

impl DeviceHead {
    fn new(
        head: &Arc<Param>,
        targets: &[Target],
        temperature: f32,
        results: HeadResults,
        recorded: bool,
    ) -> Result<Self> {
        let (gpu, vocabulary) = (head.backend().gpu()?, head.dims()[0]);
        let chunks = targets.chunks(chunk_rows(vocabulary));
        Ok(Self {
            head: head.clone(),
            chunks: chunks
                .map(|targets| TargetChunk::new(gpu, targets, vocabulary))
                .collect::<Result<_>>()?,
            inv_temperature: 1.0 / temperature,
            results,
            room: if recorded { HELD } else { 0 },
            held: Mutex::default(),
        })
    }

    /// Vocabulary size and width of the head.
    fn shape(&self) -> (usize, usize) {
        (self.head.dims()[0], self.head.dims()[1])
    }

    /// The logits of hidden rows: `[rows, vocabulary]`.
    fn logits(&self, hidden: Slice<f32>) -> Result<Array<f32>> {
        let (vocabulary, width) = self.shape();
        let rows = hidden.len() / width;
        let mut logits = lift(hidden.gpu().array(rows * vocabulary))?;
        let mut to = columns_mut(logits.slice_mut(), rows, 0, vocabulary, vocabulary)?;
        let hidden = Columns::whole(hidden, rows, width).matrix()?;
        let precision = self.head.backend().precision();
        self.head
            .with_matrix(|head| lift(to.receive(hidden, head.t(), Receive::Set, precision)))?;
        Ok(logits)
    }

    fn forward(&self, hidden: Slice<f32>) -> Result<Array<f32>> {
        let span = profile::span("head");
        let (vocabulary, width) = self.shape();
        let (targets, columns) = (self.targets(), self.results.count());
        span.wrote(targets * vocabulary);
        let mut out = lift(hidden.gpu().array(targets * columns))?;
        let mut at = 0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let logits = self.logits(chunk.rows(hidden, width)?.view())?;
            let (targets, t) = (&chunk.targets, self.inv_temperature);
            let results = lift(logits::forward(logits.slice(), targets, self.results, t))?;
            let to = out.slice_mut().part(at..at + results.len());
            lift({ to }.copy_from(results.slice()))?;
            at += results.len();
            self.hold(i, logits);
        }
        Ok(out)
    }

    fn targets(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows.len()).sum()
    }

    /// Keeps a chunk's logits for the backward pass if there is room.
    fn hold(&self, chunk: usize, logits: Array<f32>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = held.values().map(Array::len).sum();
        if count + logits.len() <= self.room {
            held.insert(chunk, logits);
        }
    }

    fn take_held(&self, chunk: usize) -> Option<Array<f32>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&chunk)
    }

    fn backward(&self, hidden: Slice<f32>, grads: Slice<f32>) -> Result<Array<f32>> {
        let span = profile::span("head backward");
        let (vocabulary, width) = self.shape();
        span.wrote(self.targets() * vocabulary);
        let mut dh = lift(hidden.gpu().zeros(hidden.len()))?;
        let (mut at, precision) = (0, self.head.backend().precision());
        for (i, chunk) in self.chunks.iter().enumerate() {
            let (rows, count) = (chunk.rows(hidden, width)?, chunk.rows.len());
            let mut logits = match self.take_held(i) {
                Some(logits) => logits,
                None => self.logits(rows.view())?,
            };
            let grads = grads.part(at..at + count * self.results.count());
            at += grads.len();
            let (targets, t) = (&chunk.targets, self.inv_temperature);
            let own = logits.slice_mut();
            lift(logits::backward(own, targets, grads, self.results, t))?;
            let dlogits = Columns::whole(logits.slice(), count, vocabulary).matrix()?;
            let mut part = lift(hidden.gpu().array(count * width))?;
            let mut to = columns_mut(part.slice_mut(), count, 0, width, width)?;
            self.head
                .with_matrix(|head| lift(to.receive(dlogits, head, Receive::Set, precision)))?;
            Gpu::scatter_add(dh.slice_mut(), part.slice(), width, &chunk.rows)?;
            self.head.with_gradient::<Gpu>(|dw| {
                let rows = Columns::whole(rows.view(), count, width).matrix()?;
                let mut to = columns_mut(dw, vocabulary, 0, width, width)?;
                lift(to.receive(dlogits.t(), rows, Receive::Add, precision))
            })?;
        }
        Ok(dh)
    }
}
