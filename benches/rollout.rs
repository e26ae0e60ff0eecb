//! Sampling: the `generate` cases of the peers, for `tiny6` and, where its folder is there, SmolLM2-135M.
//!
//!     cargo bench --bench rollout

mod support;

use collimate::model::Decoder;
use collimate::model::generator::Generator;
use rollout::{Request, Settings, generate};

const PROMPT: usize = 32;
const NEW: usize = 128;

fn main() -> anyhow::Result<()> {
    collimate::train::process::set_up();
    for (name, model) in [
        ("tiny6", Some(support::tiny6()?)),
        ("smollm2", support::smollm2()?),
    ] {
        let Some(model) = model else { continue };
        for batch in [8, 32] {
            run(name, &model, batch)?;
        }
    }
    Ok(())
}

fn run(name: &str, model: &Decoder, batch: u32) -> anyhow::Result<()> {
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
        &format!("decode {name} {batch} x ({PROMPT} -> {NEW})"),
        batch as usize * NEW,
        || {
            let settings = Settings {
                max_batch: batch as usize,
                ..Settings::default()
            };
            generate(
                &mut Generator::new(model),
                &requests,
                &settings,
                &mut |_| {},
            )?;
            Ok(())
        },
    )
}
