//! Activations of the feed-forward layer: SwiGLU (Shazeer 2020, eq. 6) and GELU (Hendrycks and
//! Gimpel 2016).

mod gpu;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kernels::arguments::Gelu;
use kernels::host::activation as host;

use super::backend::Backend;
use super::operation::{Described, Link, Operation, OperationKind, apply};
use super::place::{Host, MaybeOwned};

/// `silu(gate) · up`: `[tokens, 2·width]` holding `gate | up` → `[tokens, width]`.
///
/// # Errors
/// If the width is odd or the device fails.
pub fn swiglu(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    if x.dims2()?.1 % 2 != 0 {
        bail!("swiglu: {:?} does not hold two halves", x.dims());
    }
    apply(x, SwiGlu, backend)
}

/// [`swiglu`] as a link of a chain.
pub fn swiglu_link() -> Link {
    Arc::new(SwiGlu)
}

/// [`gelu_tanh`] as a link of a chain.
pub fn gelu_tanh_link() -> Link {
    Arc::new(Gelu::Tanh)
}

/// [`swiglu`] as a composition of candle operations.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_composed(x: &Tensor) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
}

/// GELU in its tanh form (`gelu_new`).
///
/// # Errors
/// If the device fails.
pub fn gelu_tanh(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    apply(x, Gelu::Tanh, backend)
}

struct SwiGlu;

impl Described for SwiGlu {
    fn names(&self) -> [&'static str; 2] {
        ["swiglu", "swiglu backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::SwiGlu
    }
}

impl Operation<Host> for SwiGlu {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        Ok(host::swiglu(x, rows))
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        rows: usize,
    ) -> Result<Vec<f32>> {
        Ok(host::swiglu_backward(x, dy.view(), rows))
    }
}

/// GELU by the error function, as it is defined.
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor, backend: &Backend) -> Result<Tensor> {
    apply(x, Gelu::Exact, backend)
}

/// [`gelu`] as a link of a chain.
pub fn gelu_link() -> Link {
    Arc::new(Gelu::Exact)
}

impl Described for Gelu {
    fn names(&self) -> [&'static str; 2] {
        ["gelu", "gelu backward"]
    }

    fn kind(&self) -> OperationKind {
        OperationKind::Gelu
    }
}

impl Operation<Host> for Gelu {
    fn forward(&self, x: &[f32], _rows: usize) -> Result<Vec<f32>> {
        Ok(host::gelu(*self, x))
    }

    fn backward(
        &self,
        x: &[f32],
        _y: &[f32],
        dy: MaybeOwned<Host>,
        _rows: usize,
    ) -> Result<Vec<f32>> {
        let mut d = dy.into_owned()?;
        host::gelu_backward(*self, x, &mut d);
        Ok(d)
    }
}
