//! Shared by the benches of single operations: models and timing.

use std::time::Instant;

use anyhow::Result;
use collimate::model::Decoder;
use collimate::model::config::Head;
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;

use crate::support::{SMOLLM2, TINY6, random};

/// The model named in a case's name.
pub fn model(name: &str, training: Trainability, backend: &Backend) -> Result<Decoder> {
    if !name.contains("smollm2") {
        return random(&TINY6, Head::LanguageModel, false, training, backend);
    }
    let folder = std::path::Path::new(SMOLLM2);
    Ok(Decoder::load(
        folder,
        Head::LanguageModel,
        0,
        |_| training,
        backend,
    )?)
}

/// Seconds of `count` runs of `work`, after one to warm up, in ascending order.
pub fn seconds(count: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let timed = |_| {
        let start = Instant::now();
        work().map(|()| start.elapsed().as_secs_f64())
    };
    let mut seconds: Vec<f64> = (0..count).map(timed).collect::<Result<_>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}
