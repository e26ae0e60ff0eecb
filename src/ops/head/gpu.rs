//! The head's targets on a GPU.

use candle_core::Result;
use kernels::arguments::Columns;
use kernels::device::logits::{self, Targets};
use kernels::device::{Gpu, Slice, SliceMut};

use super::Target;
use super::operation::HeadPlace;
use crate::ops::backend::Backend;
use crate::ops::place::lift;

impl HeadPlace for Gpu {
    type Targets = Targets;

    fn targets(targets: &[Target], vocabulary: usize, backend: &Backend) -> Result<Targets> {
        let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let kept = targets.iter().map(|target| target.kept.as_deref());
        let kept: Vec<&[u32]> = kept.map(Option::unwrap_or_default).collect();
        lift(Targets::new(backend.gpu()?, &tokens, &kept, vocabulary))
    }

    fn write_results(
        logits: Slice<'_, f32>,
        targets: &Targets,
        results: Columns,
        inv_temperature: f32,
        mut out: SliceMut<'_, f32>,
    ) -> Result<()> {
        let found = lift(logits::forward(logits, targets, results, inv_temperature))?;
        lift(out.copy_from(found.slice()))
    }

    fn differentiate(
        logits: SliceMut<'_, f32>,
        targets: &Targets,
        gradients: Slice<'_, f32>,
        results: Columns,
        inv_temperature: f32,
    ) -> Result<()> {
        let t = inv_temperature;
        lift(logits::backward(logits, targets, gradients, results, t))
    }
}
