//! One optimizer step of next-token training on `tiny6`, 8 rows of 256 tokens: the `sft` case of the peers.
//!
//!     cargo bench --bench train_step

mod support;

use collimate::model::{Gradient, Recompute};
use collimate::ops::attention::Segments;
use collimate::ops::head::Target;
use collimate::train::optimizer::{AdamW, AdamWConfig};

const ROWS: usize = 8;
const LENGTH: usize = 256;

fn main() -> anyhow::Result<()> {
    collimate::train::process::set_up();
    for recompute in [Recompute::None, Recompute::Block] {
        let model = support::tiny6()?;
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        };
        let mut optimizer = AdamW::new(model.params(), config)?;
        let ids: Vec<u32> = (0..(ROWS * LENGTH) as u32)
            .map(|i| (i * 2_654_435) % support::VOCABULARY)
            .collect();
        let segments = Segments::from_lengths([LENGTH; ROWS]);
        let predicts = |row: &usize| row % LENGTH != LENGTH - 1;
        let targets: Vec<Target> = (0..ids.len())
            .filter(predicts)
            .map(|row| Target::whole(row, ids[row + 1]))
            .collect();
        support::report(
            &format!("train tiny6 8x256 recompute={recompute:?}"),
            ids.len(),
            || {
                model.params().zero_grad()?;
                let hidden = model.forward(&ids, &segments, Gradient::Record(recompute))?;
                model
                    .log_probs(&hidden, &targets, 1.0)?
                    .log_probs
                    .mean_all()?
                    .neg()?
                    .backward()?;
                optimizer.step(model.params(), |_| 1e-5)?;
                Ok(())
            },
        )?;
    }
    Ok(())
}
