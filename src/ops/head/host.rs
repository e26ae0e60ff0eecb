//! The head's targets on the CPU.

use candle_core::Result;
use kernels::arguments::Columns;
use kernels::host::logits::{self, RowTarget};

use super::Target;
use super::operation::HeadPlace;
use crate::ops::backend::Backend;
use crate::ops::place::Host;

impl HeadPlace for Host {
    type Targets = Box<[Target]>;

    fn targets(targets: &[Target], _: usize, _: &Backend) -> Result<Box<[Target]>> {
        Ok(targets.into())
    }

    fn write_results(
        logits: &[f32],
        targets: &Box<[Target]>,
        results: Columns,
        inv_temperature: f32,
        out: &mut [f32],
    ) -> Result<()> {
        logits::forward(logits, &of_rows(targets), results, inv_temperature, out);
        Ok(())
    }

    fn differentiate(
        logits: &mut [f32],
        targets: &Box<[Target]>,
        gradients: &[f32],
        results: Columns,
        inv_temperature: f32,
    ) -> Result<()> {
        let targets = of_rows(targets);
        logits::backward(logits, &targets, gradients, results, inv_temperature);
        Ok(())
    }
}

fn of_rows(targets: &[Target]) -> Vec<RowTarget<'_>> {
    targets.iter().map(Target::token_of_row).collect()
}
