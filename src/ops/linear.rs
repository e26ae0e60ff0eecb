//! Linear layers: `y = x · Wᵀ + b`, with several weights side by side when they read the same input.
//!
//! `x` is `[tokens, inputs]`, each `W` is `[outputs, inputs]`; `y` holds the outputs one weight after the other. Forward on
//! the CPU is [`product`]; backward adds `dW += dyᵀ · x` straight into the arena.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::dispatch::has_kernels;
use super::operation::{Link, Operation, apply};
use super::param::{Operand, Param};
use super::pool;
use super::product::{
    Factor, Matrix, Threads, Weight, Write, add_multiplied, add_product, multiplied, multiply,
    product, with_factor,
};
use super::storage;
use super::tap::tap;

/// Rows of one task of a bias.
const ROWS: usize = 64;

/// A weight `[outputs, inputs]` with an optional bias `[outputs]`.
#[derive(Clone)]
pub struct Projection {
    /// `[outputs, inputs]`
    pub weight: Arc<Param>,
    /// `[outputs]`
    pub bias: Option<Arc<Param>>,
}

/// One or more projections of the same input.
#[derive(Clone)]
pub struct Linear {
    parts: Arc<[Projection]>,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// Joins projections that read the same input.
    ///
    /// # Errors
    /// If a weight is no matrix, inputs differ, or a bias does not fit.
    pub fn new(parts: Vec<Projection>) -> Result<Self> {
        let mut outputs = 0;
        let mut inputs = None;
        for part in &parts {
            let (n, k) = part.weight.value().dims2()?;
            if *inputs.get_or_insert(k) != k {
                bail!(
                    "{}: {k} inputs beside a weight with another number",
                    part.weight.name()
                );
            }
            if let Some(bias) = part.bias.as_ref().filter(|b| b.dims() != [n]) {
                bail!(
                    "{}: shape {:?} where [{n}] is needed",
                    bias.name(),
                    bias.dims()
                );
            }
            outputs += n;
        }
        match inputs {
            Some(inputs) => Ok(Self {
                parts: parts.into(),
                inputs,
                outputs,
            }),
            None => bail!("a linear layer needs a weight"),
        }
    }

    /// Width of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `[tokens, inputs]` → `[tokens, outputs]`.
    ///
    /// # Errors
    /// If the widths disagree or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims2()?.1 != self.inputs {
            bail!(
                "{}: input {:?} where [tokens, {}] is needed",
                self.parts[0].weight.name(),
                x.dims(),
                self.inputs
            );
        }
        if has_kernels(x.device()) {
            apply(x, self.clone())
        } else {
            self.composed(x)
        }
    }

    /// The layer as a link of a chain.
    pub fn link(&self) -> Link {
        Arc::new(self.clone())
    }

    /// The same as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let outputs: Vec<_> = self
            .parts
            .iter()
            .map(|part| part.composed(x))
            .collect::<Result<_>>()?;
        Tensor::cat(&outputs, 1)
    }
}

impl Projection {
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.value().t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias.value())?,
            None => y,
        };
        let (part, x) = (self.clone(), x.detach());
        tap(&y, move |dy| {
            if part.weight.is_trained() {
                part.weight.accumulate(&dy.t()?.matmul(&x)?)?;
            }
            match part.bias.as_ref().filter(|b| b.is_trained()) {
                Some(bias) => bias.accumulate(&dy.sum(0)?),
                None => Ok(()),
            }
        })
    }

    fn is_trained(&self) -> bool {
        let bias = self.bias.as_ref().is_some_and(|b| b.is_trained());
        self.weight.is_trained() || bias
    }

    /// Adds the bias to this projection's columns of `y`, which begin at `at`.
    fn add_bias(&self, y: &mut [f32], width: usize, at: usize) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        storage::read(bias.value(), |bias| {
            pool::for_each(y.chunks_mut(width * ROWS), |rows| {
                for row in rows.chunks_exact_mut(width) {
                    let row = row[at..].iter_mut().zip(bias);
                    row.for_each(|(y, b)| *y += b);
                }
            });
        })
    }

    /// Adds the parameters' gradients, given this projection's columns of `dy`.
    fn accumulate(&self, x: Factor, columns: Matrix) -> Result<()> {
        self.weight
            .accumulate_with(|dw| add_multiplied(columns.t(), x, dw))?;
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        bias.accumulate_with(|db| {
            for row in 0..columns.height() {
                db.iter_mut()
                    .zip(columns.row(row))
                    .for_each(|(db, g)| *db += g);
            }
        })
    }
}

impl Linear {
    /// Adds the gradients of all parts.
    fn accumulate(&self, x: Factor, dy: &[f32], rows: usize) -> Result<()> {
        let mut at = 0;
        for part in self.parts.iter() {
            let outputs = part.weight.dims()[0];
            let columns = Matrix::new(&dy[at.min(dy.len())..], rows, outputs, self.outputs);
            part.accumulate(x, columns)?;
            at += outputs;
        }
        Ok(())
    }

    fn add_biases(&self, y: &mut [f32]) -> Result<()> {
        let mut at = 0;
        for part in self.parts.iter() {
            part.add_bias(y, self.outputs, at)?;
            at += part.weight.dims()[0];
        }
        Ok(())
    }
}

impl Operation for Linear {
    fn names(&self) -> [&'static str; 2] {
        ["linear", "linear backward"]
    }

    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let parts = self.parts.iter();
        let operands: Vec<_> = parts
            .map(|part| part.weight.operand())
            .collect::<Result<_>>()?;
        let weights: Vec<Weight> = operands.iter().map(Operand::weight).collect();
        let mut y = product(Matrix::new(x, rows, self.inputs, self.inputs), &weights);
        self.add_biases(&mut y)?;
        Ok(y)
    }

    /// The sums of the product start from what is there.
    fn forward_add(&self, x: &[f32], rows: usize, sum: &mut [f32]) -> Result<()> {
        let [part] = &self.parts[..] else {
            storage::add(sum, &Operation::forward(self, x, rows)?);
            return Ok(());
        };
        let operand = part.weight.operand()?;
        let x = Matrix::new(x, rows, self.inputs, self.inputs);
        add_product(x, operand.weight(), sum);
        self.add_biases(sum)
    }

    fn backward(&self, x: &[f32], _y: &[f32], dy: Cow<[f32]>, rows: usize) -> Result<Vec<f32>> {
        let (width, inputs) = (self.outputs, self.inputs);
        if self.parts.iter().any(Projection::is_trained) {
            let x = Matrix::new(x, rows, inputs, inputs);
            with_factor(x, |x| self.accumulate(x, &dy, rows))?;
        }
        let (mut dx, mut at) = (None::<Vec<f32>>, 0);
        for part in self.parts.iter() {
            let outputs = part.weight.dims()[0];
            let columns = Matrix::new(&dy[at.min(dy.len())..], rows, outputs, width);
            let weight = storage::open(part.weight.value())?;
            let weight = Matrix::new(weight.slice(), outputs, inputs, inputs);
            match &mut dx {
                None => dx = Some(multiplied(columns, weight)),
                Some(dx) => multiply(columns, weight, dx, inputs, Write::Add, Threads::All),
            }
            at += outputs;
        }
        Ok(dx.unwrap_or_default())
    }
}
