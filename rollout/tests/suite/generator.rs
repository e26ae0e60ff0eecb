//! The generator against an oracle without cache and batching, and its guarantees about stops,
//! order and memory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kernels::random::Key;
use kernels::random::rand::Rng;
use rollout::{
    BLOCK_TOKENS, CacheBudget, Completion, Decoding, Error, Finish, GenerationOutput,
    GenerationSettings, LastToken, Request, Sampling, SequenceId, generate,
};

use crate::model::{Parrot, STOP, greedy, one_by_one, ragged, request};

fn run(requests: &[Request], settings: &GenerationSettings<'_>) -> (GenerationOutput, Parrot) {
    let mut model = Parrot::default();
    let output = generate(&mut model, requests, settings, &mut |_| ()).unwrap();
    (output, model)
}

fn tokens(completions: &[Completion]) -> Vec<&[u32]> {
    completions
        .iter()
        .map(|completion| &completion.tokens[..])
        .collect()
}

#[test]
fn completions_depend_on_neither_batch_nor_cache_nor_prefill() {
    let requests = ragged();
    let cut = Sampling {
        temperature: 0.8,
        top_k: 8,
        ..Sampling::default()
    };
    for decoding in [
        Decoding::Greedy,
        Decoding::Sample(Sampling::default()),
        Decoding::Sample(cut),
    ] {
        let settings = GenerationSettings {
            decoding,
            stop_ids: &[STOP],
            key: Key::new(5, 4u64),
            ..GenerationSettings::default()
        };
        let expected = one_by_one(&requests, &settings);
        for max_batch in [1, 7, 64] {
            for cache in [
                CacheBudget::Unlimited,
                CacheBudget::Tokens(160),
                CacheBudget::Tokens(112),
            ] {
                for prefill_tokens in [1, 19, 4096] {
                    let settings = GenerationSettings {
                        max_batch,
                        cache,
                        prefill_tokens,
                        ..settings
                    };
                    let (output, model) = run(&requests, &settings);
                    assert_eq!(
                        output.completions, expected,
                        "batch {max_batch}, {cache:?}, {prefill_tokens}"
                    );
                    assert!(*model.batches.iter().max().unwrap() <= max_batch);
                    assert_eq!(output.stats.steps, model.batches.len());
                    if cache == CacheBudget::Unlimited {
                        assert_eq!(output.stats.preemptions, 0);
                    }
                }
            }
        }
    }
}

#[test]
fn when_the_cache_is_short_the_last_sequences_give_way() {
    let requests: Vec<Request> = (20..30).map(|len| request(len, 60, 2)).collect();
    let settings = GenerationSettings {
        cache: CacheBudget::Tokens(200),
        ..GenerationSettings::default()
    };
    let (output, _) = run(&requests, &settings);
    assert!(output.stats.preemptions > 0, "{:?}", output.stats);
    assert_eq!(
        (output.stats.reserved_blocks, output.stats.peak_blocks),
        (12, 12)
    );
    assert_eq!(output.completions, one_by_one(&requests, &settings));
}

/// Hundreds of small random mixes, each with the smallest cache that can hold its largest request.
#[test]
fn no_mix_of_requests_stalls() {
    let key = Key::new(3, 2u64);
    for mix in 0..300 {
        let mut stream = key.stream(mix, 0);
        let mut number = |most| stream.random_range(1..=most);
        let count = 1 + number(6);
        let requests: Vec<Request> = (0..count)
            .map(|_| request(number(40), number(40), number(4)))
            .collect();
        let longest = requests
            .iter()
            .map(|r| r.prompt.len() + r.max_new_tokens - 1)
            .max();
        let blocks = longest.unwrap().div_ceil(BLOCK_TOKENS) + number(3) - 1;
        let settings = GenerationSettings {
            key: Key::new(mix, 4u64),
            max_batch: number(5),
            cache: CacheBudget::Tokens(blocks * BLOCK_TOKENS),
            prefill_tokens: number(50),
            stop_ids: &[STOP],
            ..GenerationSettings::default()
        };
        let (output, _) = run(&requests, &settings);
        assert_eq!(
            output.completions,
            one_by_one(&requests, &settings),
            "mix {mix}"
        );
    }
}

#[test]
fn samples_share_the_prompt() {
    // 40 tokens leave a block half full: seven of eight samples copy it, the last owner writes in
    // place.
    for (prompt_len, copies) in [(40, 7), (32, 0)] {
        let (output, model) = run(&[request(prompt_len, 4, 8)], &greedy());
        assert_eq!(output.stats.prefill_tokens, prompt_len);
        assert_eq!(output.stats.decode_tokens, 8 * 3);
        assert_eq!(model.copies, copies);
        assert_eq!(output.stats.peak_blocks, 2 + 8);
    }
}

#[test]
fn a_finished_sequence_gives_its_place_and_blocks_to_the_next() {
    let requests = [request(5, 10, 1), request(6, 3, 1), request(7, 7, 1)];
    let (output, model) = run(
        &requests,
        &GenerationSettings {
            max_batch: 2,
            ..GenerationSettings::default()
        },
    );
    // The third request starts in the step after the second one's last: no slot of the batch is
    // ever empty.
    assert_eq!(model.batches, [2; 10]);
    assert_eq!(output.stats.peak_blocks, 2);
    assert_eq!(output.stats.reserved_blocks, 2);
}

#[test]
fn completions_are_read_to_their_end_where_asked() {
    let requests = ragged();
    for cache in [CacheBudget::Unlimited, CacheBudget::Tokens(128)] {
        let settings = GenerationSettings {
            stop_ids: &[STOP],
            max_batch: 5,
            cache,
            ..GenerationSettings::default()
        };
        let (expected, _) = run(&requests, &settings);
        let last_token = LastToken::Read;
        let (output, model) = run(
            &requests,
            &GenerationSettings {
                last_token,
                ..settings
            },
        );
        assert_eq!(output.completions, expected.completions);
        assert_eq!(model.released.len(), output.completions.len());
        for c in output.completions.iter().filter(|c| !c.tokens.is_empty()) {
            let id = SequenceId {
                request: c.request,
                sample: c.sample,
            };
            let length = requests[c.request].prompt.len() + c.tokens.len();
            assert_eq!(model.read[&id], length, "{id:?}");
        }
        let answered = output.completions.iter().filter(|c| !c.tokens.is_empty());
        let answered = answered.count();
        match output.stats.preemptions {
            0 => assert_eq!(model.after_the_end, answered),
            _ => assert!(model.after_the_end >= answered),
        }
    }
}

#[test]
fn every_sequence_is_released_once_and_answered_in_order() {
    let (output, mut model) = run(
        &ragged(),
        &GenerationSettings {
            stop_ids: &[STOP],
            max_batch: 5,
            ..GenerationSettings::default()
        },
    );
    let order: Vec<(usize, usize)> = output
        .completions
        .iter()
        .map(|c| (c.request, c.sample))
        .collect();
    let finished: Vec<(usize, usize)> = model
        .released
        .iter()
        .map(|id| (id.request, id.sample))
        .collect();
    assert!(order.is_sorted() && !finished.is_sorted());
    model.released.sort();
    assert_eq!(
        model
            .released
            .iter()
            .map(|id| (id.request, id.sample))
            .collect::<Vec<_>>(),
        order
    );
}

#[test]
fn an_answer_ends_at_its_first_stop_or_its_limit() {
    let settings = GenerationSettings {
        stop_ids: &[STOP, 3],
        ..GenerationSettings::default()
    };
    let (output, _) = run(&ragged(), &settings);
    let mut seen = [0; 2];
    for c in &output.completions {
        let stop = c.tokens.iter().position(|token| [STOP, 3].contains(token));
        assert_eq!(
            stop,
            (c.finish == Finish::Stop).then_some(c.tokens.len() - 1)
        );
        assert!(c.finish == Finish::Stop || c.tokens.len() == 5 + 4 * c.request);
        assert!(c.log_probs.len() == c.tokens.len() && c.kept.len() == c.tokens.len());
        seen[c.finish as usize] += 1;
    }
    assert!(seen[0] > 3 && seen[1] > 3, "{seen:?}");
}

#[test]
fn stops_do_not_count_before_min_new_tokens() {
    let requests: Vec<Request> = ragged()
        .into_iter()
        .map(|r| Request {
            min_new_tokens: 5,
            ..r
        })
        .collect();
    let ends_even = |generated: &[u32]| generated.last().is_some_and(|token| token % 2 == 0);
    let settings = GenerationSettings {
        stop_ids: &[STOP],
        stop_text: Some(&ends_even),
        ..GenerationSettings::default()
    };
    let (output, _) = run(&requests, &settings);
    assert_eq!(output.completions, one_by_one(&requests, &settings));
    for c in &output.completions {
        assert!(c.tokens.len() >= 5 && !c.tokens[..5].contains(&STOP));
        // Where the stop token was forbidden, the kept set shows it.
        assert!(c.kept[..5].iter().all(|kept| {
            kept.as_ref()
                .is_some_and(|ids| ids.len() == 19 && ids[0] == 1)
        }));
        assert!(c.kept[5..].iter().all(Option::is_none));
        // A mask leaves one kept set, which all tokens share.
        let first = output.completions[0].kept[0].as_ref().unwrap();
        let alike = |kept: &Option<Arc<[u32]>>| Arc::ptr_eq(kept.as_ref().unwrap(), first);
        assert!(c.kept[..5].iter().all(alike));
        let stop = c.tokens[4..].iter().position(|token| token % 2 == 0);
        assert_eq!(
            stop.map(|place| place + 5),
            (c.finish == Finish::Stop).then_some(c.tokens.len())
        );
    }
}

/// Distributions that are cut for some tokens only: a completion has log-probs over the whole
/// vocabulary for all of its tokens, or for none.
#[test]
fn whole_log_probs_are_recorded_where_anything_was_cut() {
    let settings = |top_p| GenerationSettings {
        decoding: Decoding::Sample(Sampling {
            top_p,
            ..Sampling::default()
        }),
        ..GenerationSettings::default()
    };
    let (requests, cut) = (ragged(), settings(0.992));
    let (output, _) = run(&requests, &cut);
    assert_eq!(output.completions, one_by_one(&requests, &cut));
    let mut late = 0;
    for c in &output.completions {
        let first = c.kept.iter().position(Option::is_some);
        late += usize::from(first.is_some_and(|first| first > 0));
        let expected = first.map_or(0, |_| c.tokens.len());
        assert_eq!(c.whole_log_probs.len(), expected);
        for (whole, (log_prob, kept)) in c
            .whole_log_probs
            .iter()
            .zip(c.log_probs.iter().zip(&c.kept))
        {
            assert_eq!(whole < log_prob, kept.is_some(), "{whole} {log_prob}");
        }
    }
    assert!(
        late > 1,
        "of {late} completions a later token was cut first"
    );
    let (output, _) = run(&requests, &settings(1.0));
    assert!(
        output
            .completions
            .iter()
            .all(|c| c.whole_log_probs.is_empty())
    );
}

#[test]
fn draws_change_with_seed_iteration_purpose_key_and_sample() {
    let requests = [request(9, 20, 2)];
    let base = GenerationSettings::default();
    let (first, _) = run(&requests, &base);
    assert_ne!(first.completions[0].tokens, first.completions[1].tokens);
    for other in [
        GenerationSettings {
            key: Key::new(1, 4u64),
            ..base
        },
        GenerationSettings {
            iteration: 1,
            ..base
        },
        GenerationSettings {
            key: Key::new(0, 6u64),
            ..base
        },
    ] {
        assert_ne!(
            tokens(&run(&requests, &other).0.completions),
            tokens(&first.completions)
        );
    }
    let renamed = [Request {
        key: 77,
        ..requests[0].clone()
    }];
    assert_ne!(
        tokens(&run(&renamed, &base).0.completions),
        tokens(&first.completions)
    );
    // The position of a request among the others does not matter.
    let moved = [request(4, 6, 3), requests[0].clone()];
    assert_eq!(
        tokens(&run(&moved, &base).0.completions[3..]),
        tokens(&first.completions)
    );
}

#[test]
fn nothing_asked_is_nothing_done() {
    let (output, model) = run(&[request(5, 0, 2)], &GenerationSettings::default());
    assert!(model.batches.is_empty());
    let empty = |sample| Completion {
        request: 0,
        sample,
        tokens: vec![],
        log_probs: vec![],
        whole_log_probs: vec![],
        entropies: vec![],
        kept: vec![],
        finish: Finish::Length,
    };
    assert_eq!(output.completions, [empty(0), empty(1)]);
    assert_eq!(run(&[], &GenerationSettings::default()).0.completions, []);
}

#[test]
fn progress_counts_up_to_the_whole() {
    let mut seen = Vec::new();
    let mut requests = ragged();
    requests[3].max_new_tokens = 0;
    let settings = GenerationSettings {
        stop_ids: &[STOP],
        max_batch: 6,
        ..GenerationSettings::default()
    };
    let output = generate(
        &mut Parrot::default(),
        &requests,
        &settings,
        &mut |progress| seen.push(progress),
    )
    .unwrap();
    assert_eq!(seen.len(), output.stats.steps);
    assert!(seen.is_sorted_by_key(|progress| (progress.finished, progress.tokens)));
    let last = seen.last().unwrap();
    assert_eq!(
        (last.finished, last.total),
        (output.completions.len(), output.completions.len())
    );
    assert_eq!(
        last.tokens,
        output
            .completions
            .iter()
            .map(|c| c.tokens.len())
            .sum::<usize>()
    );
}

#[test]
fn a_set_flag_cancels_before_the_next_step() {
    let flag = AtomicBool::new(false);
    let settings = GenerationSettings {
        cancel: Some(&flag),
        ..GenerationSettings::default()
    };
    let mut model = Parrot::default();
    let mut cancel = |_| flag.store(true, std::sync::atomic::Ordering::Relaxed);
    let result = generate(&mut model, &ragged(), &settings, &mut cancel);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(model.batches.len(), 1);
}
