//! Activations on a GPU.

use candle_core::Result;
use kernels::device::activation::{self, swiglu, swiglu_backward};
use kernels::device::{Array, Gpu, Slice};

use super::{Gelu, SwiGlu};
use crate::ops::operation::Operation;
use crate::ops::place::{MaybeOwned, lift};

impl Operation<Gpu> for SwiGlu {
    fn forward(&self, x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
        lift(swiglu(x, rows))
    }

    fn backward(
        &self,
        x: Slice<f32>,
        _y: Slice<f32>,
        dy: MaybeOwned<Gpu>,
        rows: usize,
    ) -> Result<Array<f32>> {
        lift(swiglu_backward(x, dy.view(), rows))
    }
}

impl Operation<Gpu> for Gelu {
    fn forward(&self, x: Slice<f32>, _rows: usize) -> Result<Array<f32>> {
        lift(activation::gelu(*self, x))
    }

    fn backward(
        &self,
        x: Slice<f32>,
        _y: Slice<f32>,
        dy: MaybeOwned<Gpu>,
        _rows: usize,
    ) -> Result<Array<f32>> {
        let mut d = dy.into_owned()?;
        lift(activation::gelu_backward(*self, x, d.slice_mut()))?;
        Ok(d)
    }
}
