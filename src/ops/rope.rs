//! Rotary position embedding (Su et al. 2021, eq. 34) in the half-split form of Hugging Face checkpoints.
//!
//! Pairs are `(x[i], x[i + d/2])` of each head, rotated by `position · frequency[i]`. The backward pass is the rotation by the
//! opposite angle. Frequencies come from the model's configuration (default or llama3 scaling).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::dispatch::has_kernels;
use super::residual::Operation;
use super::storage;

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
            .par_chunks_exact(half)
            .zip(self.sin.par_chunks_exact(half));
        data.par_chunks_exact_mut(columns)
            .zip(angles)
            .with_min_len(16)
            .for_each(|(row, (cos, sin))| {
                for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                    let (low, high) = head.split_at_mut(half);
                    for i in 0..half {
                        let (a, b, s) = (low[i], high[i], direction * sin[i]);
                        low[i] = a * cos[i] - b * s;
                        high[i] = b * cos[i] + a * s;
                    }
                }
            });
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
        let mut y = storage::slice(s, l)?.to_vec();
        self.angles.turn(&mut y, l.dims()[1], self.heads, 1.0);
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut d = dy.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        self.angles.turn(&mut d, x.dims()[1], self.heads, -1.0);
        Ok(Some(Tensor::from_vec(d, x.dims(), x.device())?))
    }
}
