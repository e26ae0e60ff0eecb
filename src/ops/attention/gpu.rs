//! Packed attention on a GPU.

use std::sync::PoisonError;

use candle_core::Result;
use kernels::device::attention::packed::{self, PackedSegments};
use kernels::device::{Array, Gpu, Slice};

use super::{PackedAttention, PackedTokens};
use crate::ops::operation::Operation;
use crate::ops::place::{MaybeOwned, lift};

impl PackedTokens {
    /// The segments on a GPU.
    fn on_device(&self, gpu: &Gpu) -> Result<&PackedSegments> {
        if let Some(segments) = self.on_device.get() {
            return Ok(segments);
        }
        let segments = lift(PackedSegments::new(gpu, &self.segments))?;
        Ok(self.on_device.get_or_init(|| segments))
    }
}

impl Operation<Gpu> for PackedAttention {
    fn forward(&self, qkv: Slice<f32>, _rows: usize) -> Result<Array<f32>> {
        let segments = self.tokens.on_device(qkv.gpu())?;
        let attended = lift(packed::forward(qkv, segments, self.spec))?;
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner) = Some(attended.sums);
        Ok(attended.out)
    }

    fn backward(
        &self,
        qkv: Slice<f32>,
        out: Slice<f32>,
        grad: MaybeOwned<Gpu>,
        rows: usize,
    ) -> Result<Array<f32>> {
        let segments = self.tokens.on_device(qkv.gpu())?;
        let known = self
            .sums
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        if !known {
            Operation::<Gpu>::forward(self, qkv, rows)?;
        }
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = sums.as_ref().map_or(qkv.part(0..0), Array::slice);
        lift(packed::backward(
            qkv,
            [out, sums],
            grad.view(),
            segments,
            self.spec,
        ))
    }
}
