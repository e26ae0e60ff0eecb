//! Norms on a GPU.

use candle_core::{Result, bail};
use kernels::device::norm::{self, Gradients, Parameters};
use kernels::device::{Array, Gpu, Slice};

use super::NormOperation;
use crate::ops::operation::Operation;
use crate::ops::param::Param;
use crate::ops::place::{MaybeOwned, Place, lift, read};

impl NormOperation {
    /// Calls `f` with the parameters where they lie.
    fn with_arrays<R>(&self, f: impl FnOnce(Parameters) -> Result<R>) -> Result<R> {
        let weight = self.norm.weight();
        read::<Gpu, _>(weight.value(), weight.backend(), |weight| {
            match self.norm.bias() {
                None => f(Parameters::Rms { weight }),
                Some(bias) => read::<Gpu, _>(bias.value(), bias.backend(), |bias| {
                    f(Parameters::Layer { weight, bias })
                }),
            }
        })
    }
}

impl Operation<Gpu> for NormOperation {
    fn forward(&self, x: Slice<f32>, rows: usize) -> Result<Array<f32>> {
        let groups = self.of_rows(x.len(), rows);
        self.with_arrays(|parameters| lift(norm::forward(x, parameters, groups, self.norm.eps())))
    }

    fn backward(
        &self,
        x: Slice<f32>,
        _y: Slice<f32>,
        dy: MaybeOwned<Gpu>,
        rows: usize,
    ) -> Result<Array<f32>> {
        let (mut d, groups) = (dy.into_owned()?, self.of_rows(x.len(), rows));
        let eps = self.norm.eps();
        self.with_arrays(|parameters| {
            let mut run = |gradients: Option<Gradients>| {
                let d = Gpu::view_mut(&mut d);
                lift(norm::backward(x, d, parameters, gradients, groups, eps))
            };
            let weight = self.norm.weight();
            let all: Vec<&Param> = [Some(weight), self.norm.bias()]
                .into_iter()
                .flatten()
                .map(|param| &**param)
                .collect();
            if all.iter().all(|param| !param.is_trained()) {
                return run(None);
            }
            Param::accumulate_together::<Gpu>(&all, |gradients| {
                let mut gradients = gradients.into_iter();
                let of_bias = self.norm.bias().map(|_| ());
                match (
                    gradients.next().flatten(),
                    of_bias,
                    gradients.next().flatten(),
                ) {
                    (Some(weight), None, _) => run(Some(Gradients::Rms { weight })),
                    (Some(weight), Some(()), Some(bias)) => {
                        run(Some(Gradients::Layer { weight, bias }))
                    }
                    _ => bail!("{}: weight and bias are trained together", weight.name()),
                }
            })
        })?;
        Ok(d)
    }
}
