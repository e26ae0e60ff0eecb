//! Rotary position embedding on a GPU.

use candle_core::Result;
use kernels::arguments::Direction;
use kernels::device::rope::rotate;
use kernels::device::{Array, Gpu, Slice};

use super::{Angles, Rotate};
use crate::ops::operation::Operation;
use crate::ops::place::{MaybeOwned, Place, lift};

impl Angles {
    /// Cosines and sines in the GPU's memory, uploaded when they are first read.
    fn tables(&self, gpu: &Gpu) -> Result<&[Array<f32>; 2]> {
        if let Some(tables) = self.on_device.get() {
            return Ok(tables);
        }
        let tables = [lift(gpu.upload(&self.cos))?, lift(gpu.upload(&self.sin))?];
        Ok(self.on_device.get_or_init(|| tables))
    }
}

impl Rotate {
    fn rotate(&self, x: &mut Array<f32>, rows: usize, direction: Direction) -> Result<()> {
        let gpu = x.gpu().clone();
        let tables = self.angles.tables(&gpu)?.each_ref().map(Array::slice);
        let (heads, half) = (self.heads as u32, self.angles.half as u32);
        lift(rotate(x.slice_mut(), tables, rows, heads, half, direction))
    }
}

impl Operation<Gpu> for Rotate {
    fn forward(&self, x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
        Operation::<Gpu>::forward_owned(self, Gpu::copied(x)?, rows)
    }

    fn forward_owned(&self, mut x: Array<f32>, rows: usize) -> Result<Array<f32>> {
        self.rotate(&mut x, rows, Direction::Forward)?;
        Ok(x)
    }

    fn backward(
        &self,
        _x: Slice<f32>,
        _y: Slice<f32>,
        dy: MaybeOwned<Gpu>,
        rows: usize,
    ) -> Result<Array<f32>> {
        let mut d = dy.into_owned()?;
        self.rotate(&mut d, rows, Direction::Backward)?;
        Ok(d)
    }
}
