//! RMSNorm (Zhang and Sennrich 2019, eq. 4) and LayerNorm (Ba et al. 2016, eq. 4) over the last
//! axis, and RMSNorm of single heads inside a packed `q | k | v` row (Qwen3).
//!
//! A row is cut into groups of `width` columns, each normalised separately.

mod gpu;

use std::sync::Arc;

use candle_core::{D, Result, Tensor, bail};
use kernels::arguments::Groups;
use kernels::host::norm::{self as host, NormParameters};
use kernels::host::rows;

use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::param::Param;
use super::place::{Host, MaybeOwned};
use super::storage;
use super::tap::tap;

/// A normalisation with its parameters.
#[derive(Clone)]
pub enum Norm {
    /// `x / sqrt(mean x² + eps) · w`
    Rms {
        /// `[width]`
        weight: Arc<Param>,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x − mean) / sqrt(var + eps) · w + b`
    Layer {
        /// `[width]`
        weight: Arc<Param>,
        /// `[width]`
        bias: Arc<Param>,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// Normalises each row of `[tokens, width]`.
    ///
    /// # Errors
    /// If the width of `x` is not the norm's or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight().dims()[0];
        if x.dim(D::Minus1)? != width {
            bail!(
                "{}: input {:?} where the last axis should be {width}",
                self.weight().name(),
                x.dims()
            );
        }
        if self.weight().backend().has_kernels() {
            apply(x, self.fused(0, 1), self.weight().backend())
        } else {
            self.composed(x)
        }
    }

    /// Normalises `groups` groups of each row of `x` from column `first` on; other columns stay
    /// unchanged.
    ///
    /// # Errors
    /// If the groups reach past the row or the device fails.
    pub fn forward_groups(&self, x: &Tensor, first: usize, groups: usize) -> Result<Tensor> {
        let width = self.weight().dims()[0];
        if x.dim(D::Minus1)? < first + groups * width {
            bail!(
                "{}: {groups} groups of {width} from column {first} in a row of {:?}",
                self.weight().name(),
                x.dims()
            );
        }
        if self.weight().backend().has_kernels() {
            apply(x, self.fused(first, groups), self.weight().backend())
        } else {
            self.composed_groups(x, first, groups)
        }
    }

    /// [`Self::forward_groups`] as a link of a chain; one group from column 0 is a whole row of the
    /// norm's width.
    pub fn link(&self, first: usize, groups: usize) -> Link {
        Arc::new(self.fused(first, groups))
    }

    fn fused(&self, first: usize, groups: usize) -> NormOperation {
        NormOperation {
            norm: self.clone(),
            first,
            groups,
        }
    }

    /// [`Self::forward`] as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (centred, eps) = match self {
            Self::Rms { eps, .. } => (x.clone(), *eps),
            Self::Layer { eps, .. } => (x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, *eps),
        };
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?
            .sqrt()?
            .recip()?;
        let unit = centred.broadcast_mul(&scale)?;
        let y = unit.broadcast_mul(self.weight().value())?;
        let y = match self.bias() {
            Some(bias) => y.broadcast_add(bias.value())?,
            None => y,
        };
        let (norm, unit) = (self.clone(), unit.detach());
        tap(&y, move |dy| {
            let width = norm.weight().dims()[0];
            norm.weight()
                .accumulate(&(dy * &unit)?.reshape(((), width))?.sum(0)?)?;
            norm.bias()
                .map_or(Ok(()), |b| b.accumulate(&dy.reshape(((), width))?.sum(0)?))
        })
    }

    /// [`Self::forward_groups`] as a composition of candle operations.
    ///
    /// # Errors
    /// As [`Self::forward_groups`].
    pub fn composed_groups(&self, x: &Tensor, first: usize, groups: usize) -> Result<Tensor> {
        let (tokens, total) = x.dims2()?;
        let width = self.weight().dims()[0];
        let middle = x
            .narrow(1, first, groups * width)?
            .reshape((tokens, groups, width))?;
        let middle = self.composed(&middle)?.reshape((tokens, groups * width))?;
        let after = first + groups * width;
        Tensor::cat(
            &[
                x.narrow(1, 0, first)?,
                middle,
                x.narrow(1, after, total - after)?,
            ],
            1,
        )
    }

    fn weight(&self) -> &Arc<Param> {
        match self {
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight,
        }
    }

    fn bias(&self) -> Option<&Arc<Param>> {
        match self {
            Self::Rms { .. } => None,
            Self::Layer { bias, .. } => Some(bias),
        }
    }

    /// Calls `f` with the elements of weight and bias.
    fn with_parameters<R>(&self, f: impl FnOnce(NormParameters) -> R) -> Result<R> {
        storage::read(self.weight().value(), |weight| match self.bias() {
            None => Ok(f(NormParameters::Rms { weight })),
            Some(bias) => storage::read(bias.value(), |bias| {
                f(NormParameters::Layer { weight, bias })
            }),
        })?
    }

    /// Added to the mean square or the variance.
    fn eps(&self) -> f32 {
        match self {
            Self::Rms { eps, .. } | Self::Layer { eps, .. } => *eps,
        }
    }
}

struct NormOperation {
    norm: Norm,
    first: usize,
    groups: usize,
}

impl NormOperation {
    /// The groups of `rows` rows that hold `elements` elements together.
    fn of_rows(&self, elements: usize, rows: usize) -> Groups {
        Groups {
            rows,
            columns: (elements / rows.max(1)) as u32,
            first: self.first as u32,
            count: self.groups as u32,
            width: self.norm.weight().dims()[0] as u32,
        }
    }
}

impl Described for NormOperation {
    fn names(&self) -> [&'static str; 2] {
        ["norm", "norm backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Norm
    }
}

impl Operation<Host> for NormOperation {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let (groups, eps) = (self.of_rows(x.len(), rows), self.norm.eps());
        self.norm
            .with_parameters(|parameters| host::forward(x, parameters, groups, eps))
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let (groups, eps) = (self.of_rows(x.len(), rows), self.norm.eps());
        let mut d = dy.into_owned()?;
        let sums = self
            .norm
            .with_parameters(|parameters| host::backward(x, &mut d, parameters, groups, eps))?;
        let add =
            |param: &Param, sums: &[f32]| param.accumulate_with(|grad| rows::add_rows(grad, sums));
        add(self.norm.weight(), &sums.weight)?;
        self.norm
            .bias()
            .map_or(Ok(()), |bias| add(bias, &sums.bias))?;
        Ok(d)
    }
}
