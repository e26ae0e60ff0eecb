//! Linear layers on a GPU.

use candle_core::Result;
use kernels::device::product::{DeviceMatrix, DeviceMatrixMut, Receive};
use kernels::device::rows::{add_bias, add_column_sums};
use kernels::device::{Array, Gpu, Slice, SliceMut};

use super::{Linear, Projection};
use crate::ops::operation::Operation;
use crate::ops::param::Param;
use crate::ops::place::{MaybeOwned, Place, lift, read};

/// Columns of a matrix with wider rows.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Columns<'a> {
    pub all: Slice<'a, f32>,
    pub rows: usize,
    /// First column.
    pub at: usize,
    /// Number of columns.
    pub count: usize,
    /// Columns of the whole matrix.
    pub width: usize,
}

impl<'a> Columns<'a> {
    /// All columns of `[rows, width]`.
    pub fn whole(all: Slice<'a, f32>, rows: usize, width: usize) -> Self {
        Self {
            all,
            rows,
            at: 0,
            count: width,
            width,
        }
    }

    pub fn matrix(self) -> Result<DeviceMatrix<'a, f32>> {
        let data = self.all.part(self.at.min(self.all.len())..self.all.len());
        lift(DeviceMatrix::new(data, self.rows, self.count, self.width))
    }
}

/// Columns of a matrix with wider rows, to which a product is written.
pub(in crate::ops) fn columns_mut(
    all: SliceMut<'_, f32>,
    rows: usize,
    at: usize,
    count: usize,
    width: usize,
) -> Result<DeviceMatrixMut<'_>> {
    let len = all.len();
    lift(DeviceMatrixMut::new(
        all.part(at.min(len)..len),
        rows,
        count,
        width,
    ))
}

impl Param {
    /// Calls `f` with the value as a matrix of the GPU.
    pub(in crate::ops) fn with_matrix<R>(
        &self,
        f: impl FnOnce(DeviceMatrix<f32>) -> Result<R>,
    ) -> Result<R> {
        let (rows, columns) = self.value().dims2()?;
        read::<Gpu, _>(self.value(), self.backend(), |value| {
            f(Columns::whole(value, rows, columns).matrix()?)
        })
    }
}

impl Linear {
    /// Writes the product with each weight, or adds it, and adds biases and adapters.
    fn write_products(
        &self,
        x: Slice<f32>,
        rows: usize,
        y: &mut SliceMut<f32>,
        receive: Receive,
    ) -> Result<()> {
        let input = Columns::whole(x, rows, self.inputs).matrix()?;
        for (part, column) in self.placed() {
            let to = y.reborrow();
            let mut to = columns_mut(to, rows, column, part.outputs(), self.outputs)?;
            let precision = part.weight.backend().precision();
            part.weight
                .with_matrix(|weight| lift(to.receive(input, weight.t(), receive, precision)))?;
        }
        for (part, column) in self.placed() {
            let Some(bias) = &part.bias else { continue };
            read::<Gpu, _>(bias.value(), bias.backend(), |bias| {
                lift(add_bias(y.reborrow(), bias, rows, column))
            })?;
        }
        for (part, column) in self.placed() {
            let Some(adapter) = &part.adapter else {
                continue;
            };
            let to = columns_mut(y.reborrow(), rows, column, part.outputs(), self.outputs)?;
            adapter.add_on_device(x, rows, to)?;
        }
        Ok(())
    }

    /// A projection's columns of the gradient of the result.
    fn device_columns<'a>(
        &self,
        dy: Slice<'a, f32>,
        rows: usize,
        part: &Projection,
        at: usize,
    ) -> Columns<'a> {
        Columns {
            all: dy,
            rows,
            at,
            count: part.outputs(),
            width: self.outputs,
        }
    }

    /// Adds the gradients of weights and biases to their arena.
    fn accumulate_on_device(&self, x: Slice<f32>, dy: Slice<f32>, rows: usize) -> Result<()> {
        let input = Columns::whole(x, rows, self.inputs).matrix()?;
        let weights: Vec<&Param> = self.parts.iter().map(|part| &*part.weight).collect();
        Param::accumulate_together::<Gpu>(&weights, |gradients| {
            for (gradient, (part, at)) in gradients.into_iter().zip(self.placed()) {
                let Some(gradient) = gradient else { continue };
                let columns = self.device_columns(dy, rows, part, at).matrix()?;
                let mut to = columns_mut(gradient, part.outputs(), 0, self.inputs, self.inputs)?;
                let precision = part.weight.backend().precision();
                lift(to.receive(columns.t(), input, Receive::Add, precision))?;
            }
            Ok(())
        })?;
        for (part, at) in self.placed() {
            let Some(bias) = &part.bias else { continue };
            bias.with_gradient::<Gpu>(|db| lift(add_column_sums(db, dy, rows, at)))?;
        }
        Ok(())
    }
}

impl Operation<Gpu> for Linear {
    fn forward(&self, x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
        let mut y = lift(x.gpu().array(rows * self.outputs))?;
        self.write_products(x, rows, &mut y.slice_mut(), Receive::Set)?;
        Ok(y)
    }

    /// The sums of the products start from the values in `sum`.
    fn forward_add(&self, x: Slice<f32>, rows: usize, mut sum: SliceMut<f32>) -> Result<()> {
        self.write_products(x, rows, &mut sum, Receive::Add)
    }

    fn backward(
        &self,
        x: Slice<f32>,
        _y: Slice<f32>,
        dy: MaybeOwned<Gpu>,
        rows: usize,
    ) -> Result<Array<f32>> {
        let dy = dy.view();
        self.accumulate_on_device(x, dy, rows)?;
        let mut dx = lift(x.gpu().array(rows * self.inputs))?;
        for (i, (part, at)) in self.placed().enumerate() {
            let receive = if i == 0 { Receive::Set } else { Receive::Add };
            let columns = self.device_columns(dy, rows, part, at).matrix()?;
            let mut to = columns_mut(Gpu::view_mut(&mut dx), rows, 0, self.inputs, self.inputs)?;
            let precision = part.weight.backend().precision();
            part.weight
                .with_matrix(|weight| lift(to.receive(columns, weight, receive, precision)))?;
        }
        for (part, at) in self.placed() {
            let Some(adapter) = &part.adapter else {
                continue;
            };
            let columns = self.device_columns(dy, rows, part, at);
            adapter.backward_on_device(x, columns, Gpu::view_mut(&mut dx))?;
        }
        Ok(dx)
    }
}
