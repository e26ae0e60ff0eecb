//! Rotary position embedding (Su et al. 2021, eq. 34) in the half-split form of Hugging Face
//! checkpoints.
//!
//! The pairs `(x[i], x[i + d/2])` of each head are rotated by `position · frequency[i]`. The
//! backward pass is the rotation by the opposite angle. Frequencies come from the model's
//! configuration (default or llama3 scaling).

mod gpu;

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use candle_core::{Result, Tensor, bail};
use kernels::arguments::Direction;
use kernels::device::Array;
use kernels::host::rope::rotate;
use kernels::host::rows;

use super::backend::Backend;
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::place::{Host, MaybeOwned};

/// Frequencies of a model's pairs, from which the angles of any position follow.
#[derive(Clone)]
pub struct Rotation {
    frequencies: Arc<[f32]>,
    /// Angles of all positions up to the largest one used so far.
    table: Arc<RwLock<AngleTable>>,
}

/// Cosines and sines of positions from 0 on: `[positions, head_dim/2]` each.
#[derive(Default)]
struct AngleTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AngleTable {
    /// Extends the table to `positions` rows. Like PyTorch, it rounds `position · frequency` to
    /// `f32` before the trigonometry.
    fn grow(&mut self, frequencies: &[f32], positions: usize) {
        for position in self.cos.len() / frequencies.len()..positions {
            let angles = frequencies.iter().map(|f| f64::from(position as f32 * f));
            self.cos.extend(angles.clone().map(|a| a.cos() as f32));
            self.sin.extend(angles.map(|a| a.sin() as f32));
        }
    }
}

/// Cosines and sines of the angles of one batch: `[tokens, head_dim/2]` each.
#[derive(Clone)]
pub struct Angles {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
    /// The same tables on a GPU.
    on_device: Arc<OnceLock<[Array<f32>; 2]>>,
}

impl Rotation {
    /// Rotation with these inverse frequencies, `head_dim/2` of them.
    pub fn new(frequencies: Vec<f32>) -> Self {
        Self {
            frequencies: frequencies.into(),
            table: Arc::default(),
        }
    }

    /// Angles of tokens at these positions.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let half = self.frequencies.len();
        let known = positions.iter().max().map_or(0, |&p| p as usize + 1);
        if self.read().cos.len() < known * half {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.grow(&self.frequencies, known);
        }
        let table = self.read();
        let pick = |from: &[f32]| {
            let of = |&p: &u32| from[p as usize * half..][..half].iter().copied();
            positions.iter().flat_map(of).collect()
        };
        Angles {
            cos: pick(&table.cos),
            sin: pick(&table.sin),
            half,
            on_device: Arc::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, AngleTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Angles {
    /// Rotates the first `heads` heads of each row of `[tokens, columns]`, on the CPU; the other
    /// columns stay unchanged.
    ///
    /// # Errors
    /// If the heads reach past the row, tokens and angles differ in number, or the device fails.
    pub fn rotate(&self, x: &Tensor, heads: usize, backend: &Backend) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if columns < heads * 2 * self.half || tokens * self.half != self.cos.len() {
            bail!(
                "rope: {heads} heads of {} in {:?} with {} angles",
                2 * self.half,
                x.dims(),
                self.cos.len()
            );
        }
        apply(x, self.rotation(heads), backend)
    }

    /// [`Self::rotate`] as a link of a chain.
    pub fn link(&self, heads: usize) -> Link {
        Arc::new(self.rotation(heads))
    }

    fn rotation(&self, heads: usize) -> Rotate {
        Rotate {
            angles: self.clone(),
            heads,
        }
    }

    /// [`Self::rotate`] as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn composed(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        let table = |t: &[f32]| Tensor::from_slice(t, (tokens, 1, self.half), x.device());
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let width = heads * 2 * self.half;
        let pairs = x
            .narrow(1, 0, width)?
            .reshape((tokens, heads, 2 * self.half))?;
        let (a, b) = (
            pairs.narrow(2, 0, self.half)?,
            pairs.narrow(2, self.half, self.half)?,
        );
        let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let high = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let turned = Tensor::cat(&[low, high], 2)?.reshape((tokens, width))?;
        Tensor::cat(&[turned, x.narrow(1, width, columns - width)?], 1)
    }
}

struct Rotate {
    angles: Angles,
    heads: usize,
}

impl Rotate {
    fn turn(&self, x: &mut [f32], rows: usize, direction: Direction) {
        let Angles { cos, sin, half, .. } = &self.angles;
        rotate(x, [cos, sin], rows, self.heads, *half, direction);
    }
}

impl Described for Rotate {
    fn names(&self) -> [&'static str; 2] {
        ["rope", "rope backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Rope
    }
}

impl Operation<Host> for Rotate {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        Operation::<Host>::forward_owned(self, rows::copied(x), rows)
    }

    fn forward_owned(&self, mut x: Vec<f32>, rows: usize) -> Result<Vec<f32>> {
        self.turn(&mut x, rows, Direction::Forward);
        Ok(x)
    }

    fn backward(
        &self,
        _x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let mut d = dy.into_owned()?;
        self.turn(&mut d, rows, Direction::Backward);
        Ok(d)
    }
}
