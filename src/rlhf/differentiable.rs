//! A loss whose value and gradient are computed on the host, attached to candle's graph.
//!
//! The losses of this module are scalars of short vectors with simple gradients. Written as candle
//! operations they would cost a dozen tensors each, and `maximum`, `minimum` and `clamp` would
//! split the gradient at ties, which are common here: the first minibatch of every PPO iteration
//! has ratio exactly 1. So the analytic gradient is computed with the value, in `f64`, and one
//! operation passes it to `backward`. The values are needed on the host for the statistics anyway.
//!
//! Not for large tensors: the gradient is held as a host vector.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, bail};

use super::error::{Result, check_length};

/// A scalar function of a vector, given by its value and its gradient at the current point.
struct Linearized {
    value: f64,
    gradient: Vec<f64>, // n
}

impl Linearized {
    fn value_storage(&self, dtype: DType) -> candle_core::Result<CpuStorage> {
        match dtype {
            DType::F32 => Ok(CpuStorage::F32(vec![self.value as f32])),
            DType::F64 => Ok(CpuStorage::F64(vec![self.value])),
            other => bail!("a host loss is f32 or f64, found {other:?}"),
        }
    }
}

impl CustomOp1 for Linearized {
    fn name(&self) -> &'static str {
        "host-loss"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((self.value_storage(storage.dtype())?, Shape::from(())))
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let value = self.value_storage(storage.dtype())?;
        Ok((
            storage.device().storage_from_cpu_storage_owned(value)?,
            Shape::from(()),
        ))
    }

    fn bwd(
        &self,
        arg: &Tensor,
        _: &Tensor,
        grad_res: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let gradient = Tensor::from_slice(&self.gradient, arg.dims(), &Device::Cpu)?;
        let gradient = gradient.to_dtype(arg.dtype())?.to_device(arg.device())?;
        Ok(Some(gradient.broadcast_mul(&grad_res.detach())?))
    }
}

/// Scalar tensor of the given `value` whose gradient with respect to `x` is `gradient`.
///
/// `x` is any float vector `[n]`; half-precision input is widened to `f32` first. The scalar has
/// the (widened) type and the device of `x`. A function of several tensors is a sum of such terms,
/// one a tensor, of which only one carries the value.
///
/// # Errors
/// A length error if `gradient` has not one element for each of `x`; candle's errors.
pub fn attach_gradient(x: &Tensor, value: f64, gradient: Vec<f64>) -> Result<Tensor> {
    check_length("gradient", gradient.len(), x.elem_count())?;
    let x = match x.dtype() {
        DType::F32 | DType::F64 => x.clone(),
        _ => x.to_dtype(DType::F32)?,
    };
    Ok(x.apply_op1(Linearized { value, gradient })?)
}

/// Σ wₜ xₜ, differentiable in `x` `[n]`: the aggregation of a per-token quantity such as the
/// entropy, or of negated log-probs into a cross-entropy.
///
/// # Errors
/// A length error if `weights` has not one element for each of `x`; candle's errors.
pub fn weighted_sum(x: &Tensor, weights: &[f64]) -> Result<Tensor> {
    check_length("weights", weights.len(), x.elem_count())?;
    let values = host_values(x)?;
    let sum = values.iter().zip(weights).map(|(v, w)| v * w).sum();
    attach_gradient(x, sum, weights.to_vec())
}

/// The elements of `x` in order, on the host, outside the graph.
pub(super) fn host_values(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::Var;

    use super::*;

    pub(in crate::rlhf) fn var(values: &[f64]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    pub(in crate::rlhf) fn gradient(loss: &Tensor, of: &Var) -> Vec<f64> {
        host_values(loss.backward().unwrap().get(of).expect("no gradient")).unwrap()
    }

    #[test]
    fn the_gradient_passes_the_chain_rule() {
        let x = var(&[1.0, 2.0]);
        let loss = weighted_sum(&x.sqr().unwrap(), &[3.0, 0.5]).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 5.0);
        assert_eq!(gradient(&(loss * 2.0).unwrap(), &x), [12.0, 4.0]);
    }

    #[test]
    fn terms_on_two_tensors_add_up() {
        let (x, y) = (var(&[1.0]), var(&[2.0]));
        let loss = (attach_gradient(&x, 7.0, vec![1.5]).unwrap()
            + attach_gradient(&y, 0.0, vec![-2.0]).unwrap())
        .unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 7.0);
        assert_eq!(
            (gradient(&loss, &x), gradient(&loss, &y)),
            (vec![1.5], vec![-2.0])
        );
    }

    #[test]
    fn half_precision_is_widened_and_its_gradient_returns_to_it() {
        let x = Var::from_tensor(&var(&[1.0, 2.0]).to_dtype(DType::BF16).unwrap()).unwrap();
        let loss = weighted_sum(&x, &[0.5, 0.25]).unwrap();
        assert_eq!(
            (loss.dtype(), loss.to_scalar::<f32>().unwrap()),
            (DType::F32, 1.0)
        );
        assert_eq!(gradient(&loss, &x), [0.5, 0.25]);
    }

    #[test]
    fn a_gradient_of_the_wrong_length_is_refused() {
        assert!(attach_gradient(&var(&[1.0, 2.0]), 0.0, vec![1.0]).is_err());
    }
}
