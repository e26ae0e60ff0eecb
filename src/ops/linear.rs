//! Linear layers: `y = x · Wᵀ + b`, with several weights side by side when they read the same
//! input.
//!
//! `x` is `[tokens, inputs]` and each `W` is `[outputs, inputs]`; `y` holds the outputs of one
//! weight after the other. The forward pass on the CPU is [`product`]; the backward pass adds `dW
//! += dyᵀ · x` to the arena. A weight may have an [`Adapter`], which adds a product of two thin
//! matrices to it.

pub(super) mod gpu;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kernels::host::product::{
    GradientFactor, GradientOf, Matrix, ProductKernel, Weight, add_product, multiplied_stacked,
    product, with_factor,
};
use kernels::host::rows;

use super::adapter::{Adapter, InnerValues};
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::param::{Operand, Param};
use super::place::{Host, MaybeOwned};
use super::storage;
use super::tap::tap;

/// A weight `[outputs, inputs]` with an optional bias `[outputs]` and an optional adapter.
#[derive(Clone)]
pub struct Projection {
    /// `[outputs, inputs]`
    pub weight: Arc<Param>,
    /// `[outputs]`
    pub bias: Option<Arc<Param>>,
    /// Low-rank adapter of the weight.
    pub adapter: Option<Adapter>,
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
    /// If a weight is not a matrix, the inputs differ, or a bias or an adapter does not fit.
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
            if let Some(adapter) = &part.adapter {
                adapter.check(&part.weight)?;
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
        if self.parts[0].weight.backend().has_kernels() {
            apply(x, self.clone(), self.parts[0].weight.backend())
        } else {
            self.composed(x)
        }
    }

    /// The layer as a link of a chain.
    pub fn link(&self) -> Link {
        Arc::new(self.clone())
    }

    /// [`Self::forward`] as a composition of candle operations.
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
    /// A weight without an adapter.
    pub fn new(weight: Arc<Param>, bias: Option<Arc<Param>>) -> Self {
        Self {
            weight,
            bias,
            adapter: None,
        }
    }

    /// Width of the projection's result.
    fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.value().t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias.value())?,
            None => y,
        };
        let (part, input) = (self.clone(), x.detach());
        let y = tap(&y, move |dy| {
            if part.weight.is_trained() {
                part.weight.accumulate(&dy.t()?.matmul(&input)?)?;
            }
            match part.bias.as_ref().filter(|b| b.is_trained()) {
                Some(bias) => bias.accumulate(&dy.sum(0)?),
                None => Ok(()),
            }
        })?;
        match &self.adapter {
            Some(adapter) => y + adapter.composed(x)?,
            None => Ok(y),
        }
    }

    fn is_trained(&self) -> bool {
        let bias = self.bias.as_ref().is_some_and(|b| b.is_trained());
        let adapter = self.adapter.as_ref().is_some_and(Adapter::is_trained);
        self.weight.is_trained() || bias || adapter
    }

    /// Adds the bias to this projection's columns of `y`, which begin at `at`.
    fn add_bias(&self, y: &mut [f32], width: usize, at: usize) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        storage::read(bias.value(), |bias| rows::add_bias(y, bias, width, at))
    }

    /// Adds the bias's gradient, given this projection's columns of `dy`.
    fn accumulate_bias(&self, columns: Matrix) -> Result<()> {
        let Some(bias) = &self.bias else {
            return Ok(());
        };
        bias.accumulate_with(|db| rows::add_column_sums(db, columns))
    }
}

/// Inner values of a layer's adapters, and the gradients of these before scaling.
struct AdapterGradients {
    inner: InnerValues,
    gradient: InnerValues,
}

impl Linear {
    /// How the layer's products are computed.
    fn products(&self) -> ProductKernel {
        self.parts[0].weight.products()
    }

    /// Each projection with its first column.
    fn placed(&self) -> impl Iterator<Item = (&Projection, usize)> {
        self.parts.iter().scan(0, |at, part| {
            let column = *at;
            *at += part.outputs();
            Some((part, column))
        })
    }

    /// Each adapter with the first column of its projection and of its inner values.
    fn adapters(&self) -> impl Iterator<Item = (&Adapter, usize, usize)> {
        let adapted = self
            .placed()
            .filter_map(|(part, column)| Some((part.adapter.as_ref()?, column)));
        adapted.scan(0, |at, (adapter, column)| {
            let first = *at;
            *at += adapter.rank();
            Some((adapter, column, first))
        })
    }

    /// Columns of `dy` that belong to a projection.
    fn columns<'a>(&self, dy: &'a [f32], rows: usize, column: usize, count: usize) -> Matrix<'a> {
        Matrix::new(&dy[column.min(dy.len())..], rows, count, self.outputs)
    }

    /// Inner values of the adapters; `None` without adapters.
    fn inner(&self, x: Matrix) -> Result<Option<InnerValues>> {
        let adapters: Vec<&Adapter> = self.adapters().map(|(adapter, ..)| adapter).collect();
        match adapters.is_empty() {
            true => Ok(None),
            false => InnerValues::forward(&adapters, x).map(Some),
        }
    }

    /// Adds the results of the adapters to `y`.
    fn add_adapters(&self, x: Matrix, y: &mut [f32]) -> Result<()> {
        let Some(inner) = self.inner(x)? else {
            return Ok(());
        };
        for (adapter, column, at) in self.adapters() {
            let inner = inner.columns(at, adapter.rank());
            adapter.add_to(inner, y, self.outputs, column)?;
        }
        Ok(())
    }

    fn adapted(&self, x: Matrix, dy: &[f32], rows: usize) -> Result<Option<AdapterGradients>> {
        let Some(inner) = self.inner(x)? else {
            return Ok(None);
        };
        let parts: Vec<(&Adapter, Matrix)> = self
            .adapters()
            .map(|(adapter, column, _)| {
                let outputs = adapter.b.dims()[0];
                (adapter, self.columns(dy, rows, column, outputs))
            })
            .collect();
        let gradient = InnerValues::backward(&parts, rows)?;
        Ok(Some(AdapterGradients { inner, gradient }))
    }

    /// Adds the gradients of all projections to their arena.
    fn accumulate(
        &self,
        x: GradientFactor,
        dy: &[f32],
        rows: usize,
        adapted: Option<&AdapterGradients>,
    ) -> Result<()> {
        self.accumulate_weights(x, dy, rows)?;
        for (part, column) in self.placed() {
            part.accumulate_bias(self.columns(dy, rows, column, part.outputs()))?;
        }
        let Some(AdapterGradients { inner, gradient }) = adapted else {
            return Ok(());
        };
        for (adapter, column, at) in self.adapters() {
            let (outputs, r) = (adapter.b.dims()[0], adapter.rank());
            let columns = self.columns(dy, rows, column, outputs);
            adapter.accumulate(x, columns, inner.columns(at, r), gradient.columns(at, r))?;
        }
        Ok(())
    }

    /// Adds the gradients of all weights in one product: a single one may be too small for all
    /// threads.
    fn accumulate_weights(&self, x: GradientFactor, dy: &[f32], rows: usize) -> Result<()> {
        let weights: Vec<&Param> = self.parts.iter().map(|part| &*part.weight).collect();
        Param::accumulate_together::<Host>(&weights, |gradients| {
            let gradients = gradients.into_iter().zip(self.placed());
            let products = gradients.filter_map(|(c, (part, column))| {
                let a = self.columns(dy, rows, column, part.outputs()).t();
                Some(GradientOf { a, c: c? })
            });
            x.add_to_all(products.collect());
            Ok(())
        })
    }

    fn add_biases(&self, y: &mut [f32]) -> Result<()> {
        self.placed()
            .try_for_each(|(part, column)| part.add_bias(y, self.outputs, column))
    }

    /// The gradient of the input.
    fn input_gradient(
        &self,
        dy: &[f32],
        rows: usize,
        adapted: Option<&AdapterGradients>,
    ) -> Result<Vec<f32>> {
        let values = self
            .parts
            .iter()
            .map(|part| storage::open(part.weight.value()));
        let values: Vec<_> = values.collect::<Result<_>>()?;
        let weights = self.parts.iter().zip(&values);
        let weights: Vec<Matrix> = weights
            .map(|(part, value)| {
                Matrix::new(value.slice(), part.outputs(), self.inputs, self.inputs)
            })
            .collect();
        let dy = Matrix::new(dy, rows, self.outputs, self.outputs);
        let mut dx = multiplied_stacked(self.products(), dy, &weights);
        if let Some(AdapterGradients { gradient, .. }) = adapted {
            for (adapter, _, at) in self.adapters() {
                adapter.add_input_gradient(gradient.columns(at, adapter.rank()), &mut dx)?;
            }
        }
        Ok(dx)
    }
}

impl Described for Linear {
    fn names(&self) -> [&'static str; 2] {
        ["linear", "linear backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Linear {
            outputs: self.outputs,
            inner: self.adapters().map(|(adapter, ..)| adapter.rank()).sum(),
        }
    }
}

impl Operation<Host> for Linear {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let parts = self.parts.iter();
        let operands: Vec<_> = parts
            .map(|part| part.weight.operand())
            .collect::<Result<_>>()?;
        let weights: Vec<Weight> = operands.iter().map(Operand::weight).collect();
        let x = Matrix::new(x, rows, self.inputs, self.inputs);
        let mut y = product(self.products(), x, &weights);
        self.add_biases(&mut y)?;
        self.add_adapters(x, &mut y)?;
        Ok(y)
    }

    /// The sums of the product start from the values in `sum`.
    fn forward_add(&self, x: &[f32], rows: usize, sum: &mut [f32]) -> Result<()> {
        let [part] = &self.parts[..] else {
            rows::add(sum, &Operation::<Host>::forward(self, x, rows)?);
            return Ok(());
        };
        let operand = part.weight.operand()?;
        let x = Matrix::new(x, rows, self.inputs, self.inputs);
        add_product(self.products(), x, operand.weight(), sum);
        self.add_biases(sum)?;
        self.add_adapters(x, sum)
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let x = Matrix::new(x, rows, self.inputs, self.inputs);
        let dy = dy.view();
        let adapted = self.adapted(x, dy, rows)?;
        if self.parts.iter().any(Projection::is_trained) {
            let accumulate = |x: GradientFactor| self.accumulate(x, dy, rows, adapted.as_ref());
            with_factor(self.products(), x, accumulate)?;
        }
        self.input_gradient(dy, rows, adapted.as_ref())
    }
}
