//! One optimizer step of next-token training on 8 rows of 256 tokens: the `sft` cases of the peers.
//!
//!     cargo bench --bench train_step

#[path = "support/floor.rs"]
mod floor;
mod support;
#[path = "support/timed.rs"]
mod timed;

use anyhow::Result;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::head::Target;
use collimate::ops::param::Trainability;
use collimate::train::optimizer::{AdamW, AdamWConfig};
use kernels::attention::Segments;
use kernels::host::product::ProductKernel;
use serde_json::json;

const ROWS: usize = 8;
const LENGTH: usize = 256;

fn main() -> Result<()> {
    support::run(&[
        ("train tiny6", step),
        ("train tiny6 recompute", step),
        ("train smollm2", step),
        ("train smollm2 recompute", step),
    ])
}

/// Times the step, and its lower bound, in the arithmetic of a training stage.
fn step(case: &str) -> Result<()> {
    let recompute = match case.contains("recompute") {
        true => Recompute::Block,
        false => Recompute::None,
    };
    let kernel = ProductKernel::fastest();
    let model = timed::model(case, Trainability::Trained, &Backend::Host(kernel))?;
    let mut optimizer = AdamW::new(model.params(), CONFIG)?;
    let (ids, targets) = data(&model);
    let segments = Segments::from_lengths([LENGTH; ROWS]);
    let seconds = timed::seconds(5, || {
        model.params().zero_grad()?;
        let hidden = model.forward(&ids, &segments, Gradient::Record(recompute))?;
        let log_probs = model.log_probs(&hidden, &targets, 1.0)?.log_probs;
        log_probs.mean_all()?.neg()?.backward()?;
        optimizer.step(model.params(), |_| 1e-5)?;
        Ok(())
    })?;
    let (peak, median) = (support::peak_mib(), support::median(&seconds));
    // A forward pass, and twice the work in the backward pass.
    let work = 3.0 * floor::multiply_adds(&model) * ids.len() as f64;
    let least = floor::seconds(kernel, ids.len(), work, 0.0);
    support::report(
        case,
        json!({
            "tokens_per_second": ids.len() as f64 / median, "seconds": seconds,
            "share_of_floor": least / median, "peak_mib": peak,
        }),
    );
    Ok(())
}

const CONFIG: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.0,
    max_grad_norm: 1.0,
};

/// Token ids, and each row's next tokens as targets.
fn data(model: &Decoder) -> (Vec<u32>, Vec<Target>) {
    let vocabulary = model.decoder_config().vocab_size as u32;
    let token = |i: u32| i.wrapping_mul(2_654_435_761) % vocabulary;
    let ids: Vec<u32> = (0..(ROWS * LENGTH) as u32).map(token).collect();
    let rows = (0..ids.len()).filter(|row| row % LENGTH != LENGTH - 1);
    let targets = rows.map(|row| Target::whole(row, ids[row + 1])).collect();
    (ids, targets)
}
