//! Sampling from `tiny6`: 32 → 128 tokens at batch 8 and 32, the `generate` cases of the peers.
//!
//!     cargo bench --bench rollout

mod support;

use collimate::model::generator::Generator;
use rollout::{Request, Settings, generate};

const PROMPT: usize = 32;
const NEW: usize = 128;

fn main() -> anyhow::Result<()> {
    let model = support::tiny6()?;
    for batch in [8, 32] {
        let request = |key: u32| Request {
            key: u64::from(key),
            prompt: (0..PROMPT as u32)
                .map(|i| (key * 977 + i * 31) % support::VOCABULARY)
                .collect(),
            max_new_tokens: NEW,
            min_new_tokens: NEW,
            samples: 1,
        };
        let requests: Vec<Request> = (0..batch).map(request).collect();
        support::report(
            &format!("decode tiny6 {batch} x ({PROMPT} -> {NEW})"),
            batch as usize * NEW,
            || {
                let settings = Settings {
                    max_batch: batch as usize,
                    ..Settings::default()
                };
                generate(
                    &mut Generator::new(&model),
                    &requests,
                    &settings,
                    &mut |_| {},
                )?;
                Ok(())
            },
        )?;
    }
    Ok(())
}
