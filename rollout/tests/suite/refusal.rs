//! Impossible requests are refused with a message that says what was found and how to fix it.

use rollout::{
    CacheBudget, CacheSpec, Decoding, Draw, Drawn, Error, GenerationSettings, Model, ModelResult,
    ModelStep, Request, Sampling, draw_row, generate,
};

use crate::model::{Parrot, request};

/// A change that makes a value impossible, and the message about it.
type Spoiled<T> = (fn(&mut T), &'static str);

/// The error's whole chain of messages.
fn refusal<M: Model>(
    model: &mut M,
    requests: &[Request],
    settings: &GenerationSettings<'_>,
) -> String {
    let error = generate(model, requests, settings, &mut |_| ())
        .map(|_| ())
        .unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn requests_that_cannot_be_met_are_refused_before_any_work() {
    let cases: [Spoiled<Request>; 6] = [
        (|r| r.prompt = vec![], "request 1 has an empty prompt"),
        (
            |r| r.prompt = vec![3, 20],
            "request 1 holds token 20, but the model's vocabulary ends at 19",
        ),
        (
            |r| r.max_new_tokens = 116,
            "request 1 needs 5 + 116 positions",
        ),
        (|r| r.max_new_tokens = usize::MAX, "but the model has 120"),
        (
            |r| r.samples = 0,
            "request 1: samples is 0; it must be 1 or more",
        ),
        (
            |r| r.min_new_tokens = 6,
            "request 1: min_new_tokens is 6; it must be at most max_new_tokens",
        ),
    ];
    for (spoil, expected) in cases {
        let (mut model, good) = (Parrot::default(), request(5, 5, 1));
        let mut bad = good.clone();
        spoil(&mut bad);
        let text = refusal(&mut model, &[good, bad], &GenerationSettings::default());
        assert!(text.contains(expected), "{text}");
        assert!(model.batches.is_empty());
    }
}

#[test]
fn settings_outside_their_range_are_refused() {
    let batches: [Spoiled<GenerationSettings>; 2] = [
        (|s| s.max_batch = 0, "max_batch is 0; it must be 1 or more"),
        (|s| s.prefill_tokens = 0, "prefill_tokens is 0"),
    ];
    for (spoil, expected) in batches {
        let mut settings = GenerationSettings::default();
        spoil(&mut settings);
        let text = refusal(&mut Parrot::default(), &[request(5, 5, 1)], &settings);
        assert!(text.contains(expected), "{text}");
    }
    let cuts: [Spoiled<Sampling>; 6] = [
        (
            |s| s.temperature = 0.0,
            "temperature is 0; it must be from 0.0001",
        ),
        (|s| s.temperature = f32::NAN, "temperature is NaN"),
        (
            |s| s.temperature = 1e5,
            "temperature is 100000; it must be from 0.0001 to 10000",
        ),
        (
            |s| s.top_p = 0.0,
            "top_p is 0; it must be above 0 and at most 1",
        ),
        (|s| s.top_p = 1.5, "top_p is 1.5"),
        (|s| s.min_p = 1.5, "min_p is 1.5; it must be from 0 to 1"),
    ];
    for (spoil, expected) in cuts {
        let mut sampling = Sampling::default();
        spoil(&mut sampling);
        let settings = GenerationSettings {
            decoding: Decoding::Sample(sampling),
            ..GenerationSettings::default()
        };
        let text = refusal(&mut Parrot::default(), &[request(5, 5, 1)], &settings);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_request_larger_than_the_cache_is_refused_and_the_largest_that_fits_runs() {
    // 20 + 45 − 1 tokens fill four blocks; a block of this model takes 1024 bytes.
    for cache in [CacheBudget::Tokens(64), CacheBudget::Bytes(4 * 1024)] {
        let settings = GenerationSettings {
            cache,
            ..GenerationSettings::default()
        };
        generate(
            &mut Parrot::default(),
            &[request(20, 45, 3)],
            &settings,
            &mut |_| (),
        )
        .unwrap();
        let text = refusal(
            &mut Parrot::default(),
            &[request(5, 5, 1), request(20, 46, 3)],
            &settings,
        );
        assert!(
            text.contains("request 1 needs 80 tokens of cache")
                && text.contains("the budget gives 64"),
            "{text}"
        );
    }
}

/// A model that fails in one way.
struct Broken(Fault);

#[derive(Clone, Copy)]
enum Fault {
    Reserve,
    Forward,
    NotANumber,
    TooFew,
    OutsideVocabulary,
}

impl Model for Broken {
    type Logits = ();

    fn cache_spec(&self) -> CacheSpec {
        Parrot::default().cache_spec()
    }

    fn reserve(&mut self, _: usize) -> ModelResult<()> {
        if matches!(self.0, Fault::Reserve) {
            Err("out of memory".into())
        } else {
            Ok(())
        }
    }

    fn forward(&mut self, _: &ModelStep<'_>) -> ModelResult<()> {
        if matches!(self.0, Fault::Forward) {
            Err("no such kernel".into())
        } else {
            Ok(())
        }
    }

    fn draw(&mut self, (): &(), draws: &[Draw<'_>]) -> ModelResult<Vec<Drawn>> {
        match self.0 {
            Fault::NotANumber => Ok(vec![draw_row(&[0.0, f32::NAN], &draws[0])?]),
            Fault::TooFew => Ok(vec![]),
            _ => Ok(vec![Drawn {
                token: 20,
                log_prob: -1.0,
                whole_log_prob: -1.0,
                entropy: None,
                kept: None,
            }]),
        }
    }
}

#[test]
fn a_failing_model_is_an_error_that_says_where() {
    let cases = [
        (
            Fault::Reserve,
            "the model could not reserve its cache (step 0): out of memory",
        ),
        (
            Fault::Forward,
            "the model could not read the next tokens (step 0): no such kernel",
        ),
        (
            Fault::NotANumber,
            "(step 0): the logits of request 0, sample 0, new token 0 hold NaN for token 1",
        ),
        (Fault::TooFew, "the model drew 0 tokens for 1 requests"),
        (
            Fault::OutsideVocabulary,
            "the model drew token 20 with log-probability -1 for request 0, sample 0",
        ),
    ];
    for (fault, expected) in cases {
        let text = refusal(
            &mut Broken(fault),
            &[request(5, 5, 1)],
            &GenerationSettings::default(),
        );
        assert!(text.contains(expected), "{text}");
    }
    let result = generate(
        &mut Broken(Fault::Forward),
        &[request(5, 5, 1)],
        &GenerationSettings::default(),
        &mut |_| (),
    );
    assert!(matches!(result, Err(Error::Model { step: 0, .. })));
}
