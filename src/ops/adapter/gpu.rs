//! Adapters on a GPU.

use candle_core::Result;
use kernels::device::product::{DeviceMatrixMut, Precision, Receive};
use kernels::device::rows::scale;
use kernels::device::{Array, Gpu, Slice, SliceMut};

use super::Adapter;
use crate::ops::linear::gpu::{Columns, columns_mut};
use crate::ops::place::lift;

impl Adapter {
    fn precision(&self) -> Precision {
        self.a.backend().precision()
    }

    /// `scale · x · Aᵀ`, `[rows, r]`.
    fn inner_on_device(&self, x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
        let (r, inputs) = self.a.value().dims2()?;
        let mut inner = lift(x.gpu().array(rows * r))?;
        let input = Columns::whole(x, rows, inputs).matrix()?;
        self.a.with_matrix(|a| {
            let mut to = columns_mut(inner.slice_mut(), rows, 0, r, r)?;
            lift(to.receive(input, a.t(), Receive::Set, self.precision()))
        })?;
        lift(scale(inner.slice_mut(), self.scale))?;
        Ok(inner)
    }

    /// Adds the adapter's result to its columns of `y`.
    pub(in crate::ops) fn add_on_device(
        &self,
        x: Slice<f32>,
        rows: usize,
        mut y: DeviceMatrixMut,
    ) -> Result<()> {
        let inner = self.inner_on_device(x, rows)?;
        let inner = Columns::whole(inner.slice(), rows, self.rank()).matrix()?;
        self.b
            .with_matrix(|b| lift(y.receive(inner, b.t(), Receive::Add, self.precision())))
    }

    /// Adds the gradients of both matrices, and the adapter's part of the gradient of `x` to `dx`,
    /// given the gradient of the adapter's columns of `y`.
    pub(in crate::ops) fn backward_on_device(
        &self,
        x: Slice<f32>,
        dy: Columns,
        dx: SliceMut<f32>,
    ) -> Result<()> {
        let (rows, precision) = (dy.rows, self.precision());
        let (r, inputs) = self.a.value().dims2()?;
        let mut d = lift(x.gpu().array(rows * r))?;
        self.b.with_matrix(|b| {
            let mut to = columns_mut(d.slice_mut(), rows, 0, r, r)?;
            lift(to.receive(dy.matrix()?, b, Receive::Set, precision))
        })?;
        lift(scale(d.slice_mut(), self.scale))?;
        let d = Columns::whole(d.slice(), rows, r).matrix()?;
        let input = Columns::whole(x, rows, inputs).matrix()?;
        self.a.with_gradient::<Gpu>(|da| {
            let mut to = columns_mut(da, r, 0, inputs, inputs)?;
            lift(to.receive(d.t(), input, Receive::Add, precision))
        })?;
        if self.b.is_trained() {
            let inner = self.inner_on_device(x, rows)?;
            let inner = Columns::whole(inner.slice(), rows, r).matrix()?;
            self.b.with_gradient::<Gpu>(|db| {
                let mut to = columns_mut(db, dy.count, 0, r, r)?;
                lift(to.receive(dy.matrix()?.t(), inner, Receive::Add, precision))
            })?;
        }
        self.a.with_matrix(|a| {
            let mut to = columns_mut(dx, rows, 0, inputs, inputs)?;
            lift(to.receive(d, a, Receive::Add, precision))
        })
    }
}
