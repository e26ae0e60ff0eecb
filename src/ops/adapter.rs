//! The low-rank part of an adapted projection: `y += scale · (x · Aᵀ) · Bᵀ` (LoRA: Hu et al. 2021,
//! eq. 3).
//!
//! `A` is `[r, inputs]` and `B` is `[outputs, r]`. Adapters whose projections read the same input
//! compute their inner values `x · Aᵀ` side by side, in one product. All passes run the same
//! products in the same order (`kernels::host::product`), so that an adapted row, too, has the same
//! bits alone and in any batch. Left out: dropout of the input; without it training and generation
//! compute one function.

mod gpu;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kernels::host::product::{
    GradientFactor, Matrix, ProductKernel, Threads, Weight, Write, add_product_at, multiply,
    product,
};
use kernels::host::rows;

use super::param::{Operand, Param};
use super::storage;
use super::tap::tap;

/// Two thin matrices whose product is added to a weight.
#[derive(Clone)]
pub struct Adapter {
    /// `A`, `[r, inputs]`
    pub a: Arc<Param>,
    /// `B`, `[outputs, r]`
    pub b: Arc<Param>,
    /// Factor of the product: α/r, or α/√r.
    pub scale: f32,
}

/// `scale · x · Aᵀ` of adapters side by side, or the gradient of `x · Aᵀ`: `[rows, Σ r]`.
pub(super) struct InnerValues {
    values: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Adapter {
    /// The rank `r`.
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    pub(super) fn is_trained(&self) -> bool {
        self.a.is_trained() || self.b.is_trained()
    }

    /// Checks that the adapter fits a weight `[outputs, inputs]`.
    pub(super) fn check(&self, weight: &Param) -> Result<()> {
        let (outputs, inputs) = weight.value().dims2()?;
        let (r, from) = self.a.value().dims2()?;
        if from != inputs || self.b.dims() != [outputs, r] {
            bail!(
                "{}: adapters {:?} and {:?} do not fit its shape [{outputs}, {inputs}]",
                weight.name(),
                self.a.dims(),
                self.b.dims()
            );
        }
        Ok(())
    }

    /// The adapter's result as a composition of candle operations.
    pub(super) fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let scale = f64::from(self.scale);
        let inner = (x.matmul(&self.a.value().t()?)? * scale)?;
        let (a, x) = (self.a.clone(), x.detach());
        let inner = tap(&inner, move |d| match a.is_trained() {
            true => a.accumulate(&(d.t()?.matmul(&x)? * scale)?),
            false => Ok(()),
        })?;
        let y = inner.matmul(&self.b.value().t()?)?;
        let (b, inner) = (self.b.clone(), inner.detach());
        tap(&y, move |dy| match b.is_trained() {
            true => b.accumulate(&dy.t()?.matmul(&inner)?),
            false => Ok(()),
        })
    }

    /// Adds the adapter's result to the columns of `y` from `column` on; rows of `y` are `width`
    /// apart.
    pub(super) fn add_to(
        &self,
        inner: Matrix,
        y: &mut [f32],
        width: usize,
        column: usize,
    ) -> Result<()> {
        let operand = self.b.operand()?;
        add_product_at(self.b.products(), inner, operand.weight(), y, width, column);
        Ok(())
    }

    /// Writes the gradient of `x · Aᵀ` to the columns of `d` from `at` on, given the gradient of
    /// the adapter's columns of `y`.
    fn inner_gradient(&self, columns: Matrix, d: &mut InnerValues, at: usize) -> Result<()> {
        let (outputs, r) = self.b.value().dims2()?;
        let stride = d.width;
        storage::read(self.b.value(), |b| {
            let b = Matrix::new(b, outputs, r, r);
            let window = at.min(d.values.len());
            let to = &mut d.values[window..];
            multiply(
                self.b.products(),
                columns,
                b,
                to,
                stride,
                Write::Set,
                Threads::All,
            );
        })
    }

    /// Adds the adapter's part of the gradient of `x`, given the gradient of `x · Aᵀ`.
    pub(super) fn add_input_gradient(&self, d: Matrix, dx: &mut [f32]) -> Result<()> {
        let (r, inputs) = self.a.value().dims2()?;
        storage::read(self.a.value(), |a| {
            let a = Matrix::new(a, r, inputs, inputs);
            multiply(
                self.a.products(),
                d,
                a,
                dx,
                inputs,
                Write::Add,
                Threads::All,
            );
        })
    }

    /// Adds the gradients of both matrices: `dA += dᵀ · x` and `dB += dyᵀ · inner`.
    pub(super) fn accumulate(
        &self,
        x: GradientFactor,
        columns: Matrix,
        inner: Matrix,
        d: Matrix,
    ) -> Result<()> {
        let r = self.rank();
        self.a.accumulate_with(|da| x.add_to(d.t(), da))?;
        let kernel = self.b.products();
        self.b.accumulate_with(|db| {
            multiply(kernel, columns.t(), inner, db, r, Write::Add, Threads::All);
        })
    }
}

impl InnerValues {
    /// `scale · x · Aᵀ` of all `adapters`.
    pub(super) fn forward(adapters: &[&Adapter], x: Matrix) -> Result<Self> {
        let operands: Vec<_> = adapters
            .iter()
            .map(|adapter| adapter.a.operand())
            .collect::<Result<_>>()?;
        let weights: Vec<Weight> = operands.iter().map(Operand::weight).collect();
        let kernel = adapters
            .first()
            .map_or(ProductKernel::Chains, |adapter| adapter.a.products());
        let mut inner = Self {
            values: product(kernel, x, &weights),
            rows: x.height(),
            width: adapters.iter().map(|a| a.rank()).sum(),
        };
        inner.scale(adapters);
        Ok(inner)
    }

    /// The gradients of `x · Aᵀ`, given the gradient of each adapter's columns of `y`.
    pub(super) fn backward(parts: &[(&Adapter, Matrix)], rows: usize) -> Result<Self> {
        let adapters: Vec<&Adapter> = parts.iter().map(|(adapter, _)| *adapter).collect();
        let width = adapters.iter().map(|a| a.rank()).sum();
        let mut d = Self {
            values: vec![0.0; rows * width],
            rows,
            width,
        };
        let mut at = 0;
        for (adapter, columns) in parts {
            adapter.inner_gradient(*columns, &mut d, at)?;
            at += adapter.rank();
        }
        d.scale(&adapters);
        Ok(d)
    }

    /// The `rank` columns from `at` on.
    pub(super) fn columns(&self, at: usize, rank: usize) -> Matrix<'_> {
        Matrix::new(
            &self.values[at.min(self.values.len())..],
            self.rows,
            rank,
            self.width,
        )
    }

    fn scale(&mut self, adapters: &[&Adapter]) {
        let scales: Vec<f32> = adapters
            .iter()
            .flat_map(|adapter| std::iter::repeat_n(adapter.scale, adapter.rank()))
            .collect();
        rows::scale_columns(&mut self.values, &scales);
    }
}
