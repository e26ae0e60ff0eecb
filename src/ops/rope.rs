//! Rotary position embedding (Su et al. 2021, eq. 34) in the half-split form of Hugging Face checkpoints.
//!
//! Pairs are `(x[i], x[i + d/2])` of each head, rotated by `position · frequency[i]`. The backward pass is the rotation by the
//! opposite angle. Frequencies come from the model's configuration (default or llama3 scaling).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;

use super::dispatch::has_kernels;
use super::pool;
use super::profile;
use super::residual::Operation;
use super::storage;

/// Rows of one task.
const ROWS: usize = 64;

/// The frequencies of a model's pairs, which give the angles of any position.
#[derive(Clone)]
pub struct Rotation {
    frequencies: Arc<[f32]>,
}

/// The angles of one batch: `[tokens, head_dim/2]` each.
#[derive(Clone)]
pub struct Angles {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
}

impl Rotation {
    /// From the inverse frequencies, `head_dim/2` of them.
    pub fn new(frequencies: Vec<f32>) -> Self {
        Self {
            frequencies: frequencies.into(),
        }
    }

    /// Angles of these positions. Products are rounded to f32 as PyTorch does before the trigonometry.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let angle = |&p: &u32| {
            self.frequencies
                .iter()
                .map(move |f| f64::from(p as f32 * f))
        };
        let cos = positions
            .iter()
            .flat_map(|p| angle(p).map(|a| a.cos() as f32))
            .collect();
        let sin = positions
            .iter()
            .flat_map(|p| angle(p).map(|a| a.sin() as f32))
            .collect();
        Angles {
            cos,
            sin,
            half: self.frequencies.len(),
        }
    }
}

impl Angles {
    /// Rotates the first `heads` heads of each row of `[tokens, columns]`; the rest passes unchanged.
    ///
    /// # Errors
    /// If the heads reach past the row, tokens and angles differ in number, or the device fails.
    pub fn rotate(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if columns < heads * 2 * self.half || tokens * self.half != self.cos.len() {
            bail!(
                "rope: {heads} heads of {} in {:?} with {} angles",
                2 * self.half,
                x.dims(),
                self.cos.len()
            );
        }
        if has_kernels(x.device()) {
            x.contiguous()?.apply_op1(Rotate {
                angles: self.clone(),
                heads,
            })
        } else {
            self.composed(x, heads)
        }
    }

    /// [`Self::rotate`] as a link of a chain.
    pub fn operation(&self, heads: usize) -> Operation {
        Arc::new(Box::new(Rotate {
            angles: self.clone(),
            heads,
        }))
    }

    /// The same as a composition of candle operations.
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

    fn turn(&self, data: &mut [f32], columns: usize, heads: usize, direction: f32) {
        let half = self.half;
        let angles = self
            .cos
            .chunks(ROWS * half)
            .zip(self.sin.chunks(ROWS * half));
        let blocks = data.chunks_mut(ROWS * columns).zip(angles);
        pool::for_each(blocks, |(rows, (cos, sin))| {
            let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
            for (row, (cos, sin)) in rows.chunks_exact_mut(columns).zip(angles) {
                for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                    turn_head(head, cos, sin, direction);
                }
            }
        });
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    let pairs = low.iter_mut().zip(high);
    for ((low, high), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
        let (a, b, s) = (*low, *high, direction * sin);
        *low = a * cos - b * s;
        *high = b * cos + a * s;
    }
}

struct Rotate {
    angles: Angles,
    heads: usize,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("rope");
        let mut y = storage::slice(s, l)?.to_vec();
        self.angles.turn(&mut y, l.dims()[1], self.heads, 1.0);
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("rope backward");
        let mut d = dy.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        self.angles.turn(&mut d, x.dims()[1], self.heads, -1.0);
        Ok(Some(Tensor::from_vec(d, x.dims(), x.device())?))
    }
}
