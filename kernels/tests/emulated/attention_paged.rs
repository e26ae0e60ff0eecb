//! Attention over a cache against the definition of attention, in every order.

use std::ops::Range;

use kernels::attention::{Attention, BLOCK_TOKENS, NewTokens};
use kernels::device::Gpu;
use kernels::device::attention::PagedStep;
use kernels::device::attention::paged::{BlockCopies, Cached, PagedCache};

use super::attention::{define, shape};
use super::{ORDERS, assert_close, device, in_every_order, numbers};

/// A sequence with its rows and its blocks.
struct Sequence {
    /// `[tokens, columns]`
    qkv: Vec<f32>,
    blocks: Vec<u32>,
}

/// Blocks of a cache in an order without a pattern.
const BLOCKS: usize = 97;

/// Sequences of these lengths, whose blocks are scattered.
fn sequences(lengths: &[usize], spec: Attention) -> Vec<Sequence> {
    let mut next = 0;
    let sequence = |(seed, &tokens): (usize, &usize)| Sequence {
        qkv: numbers(tokens * spec.columns(), seed as u32 + 1),
        blocks: (0..tokens.div_ceil(BLOCK_TOKENS))
            .map(|_| {
                next += 1;
                (next * 53 % BLOCKS) as u32
            })
            .collect(),
    };
    lengths.iter().enumerate().map(sequence).collect()
}

/// The results of these positions of these sequences, which are computed in one step.
fn step<T: Cached>(
    cache: &mut PagedCache<T>,
    gpu: &Gpu,
    news: &[(&Sequence, Range<usize>)],
    spec: Attention,
) -> Vec<f32> {
    let tokens: Vec<NewTokens> = news
        .iter()
        .map(|(sequence, range)| NewTokens {
            count: range.len(),
            past: range.start,
            blocks: &sequence.blocks,
        })
        .collect();
    let rows = |(sequence, range): &(&Sequence, Range<usize>)| {
        sequence.qkv[range.start * spec.columns()..range.end * spec.columns()].to_vec()
    };
    let qkv = gpu.upload(&news.iter().map(rows).collect::<Vec<_>>().concat());
    let step = PagedStep::new(gpu, &tokens, spec.group()).unwrap();
    let out = cache.attend(qkv.unwrap().slice(), &step, spec).unwrap();
    out.download().unwrap()
}

/// All sequences, in steps that end at these positions; a sequence that is shorter ends early.
fn in_steps<T: Cached>(gpu: &Gpu, all: &[Sequence], ends: &[usize], spec: Attention) -> Vec<f32> {
    let mut cache = PagedCache::<T>::new(gpu, &spec, BLOCKS).unwrap();
    let mut results = vec![Vec::new(); all.len()];
    for (&start, &end) in [0].iter().chain(ends).zip(ends) {
        let part = |s: &Sequence| {
            let tokens = s.qkv.len() / spec.columns();
            start.min(tokens)..end.min(tokens)
        };
        let news: Vec<_> = all.iter().map(|s| (s, part(s))).collect();
        let mut found = &step(&mut cache, gpu, &news, spec)[..];
        for ((_, range), result) in news.iter().zip(&mut results) {
            let (own, rest) = found.split_at(range.len() * spec.outputs());
            result.extend_from_slice(own);
            found = rest;
        }
    }
    results.concat()
}

fn expected(all: &[Sequence], spec: Attention, round: impl Fn(f32) -> f32) -> Vec<f64> {
    let one = |s: &Sequence| {
        let qkv: Vec<f32> = s.qkv.iter().map(|&x| round(x)).collect();
        let tokens = qkv.len() / spec.columns();
        define(&qkv, &vec![0.0; tokens * spec.outputs()], spec).out
    };
    all.iter().flat_map(one).collect()
}

#[test]
fn cached_attention_is_its_definition_for_every_head_size() {
    for head_dim in [4, 8, 20, 16, 40, 64, 80, 128, 256] {
        let spec = shape(2, 1, head_dim, None);
        let all = sequences(&[150, 7], spec);
        let found = in_every_order(|gpu| in_steps::<f32>(gpu, &all, &[140, 149, 150], spec));
        assert_close(&found, &expected(&all, spec, |x| x), 1e-5);
    }
}

#[test]
fn cached_attention_is_its_definition_for_every_group_and_window() {
    let gpu = device(ORDERS[3]);
    for (query_heads, kv_heads, windows) in [
        (2, 2, [Some(1), Some(1000)]),
        (3, 1, [None, Some(5)]),
        (8, 2, [Some(140), Some(1)]),
        (12, 2, [Some(5), None]),
        (17, 1, [Some(140), Some(128)]),
    ] {
        for window in windows {
            let spec = shape(query_heads, kv_heads, 8, window);
            let all = sequences(&[262, 1, 131, 17], spec);
            let found = in_steps::<f32>(&gpu, &all, &[3, 129, 130, 260, 262], spec);
            assert_close(&found, &expected(&all, spec, |x| x), 1e-5);
        }
    }
}

#[test]
fn a_token_depends_on_neither_the_batch_nor_its_chunk() {
    for window in [None, Some(30)] {
        let spec = shape(6, 2, 16, window);
        let all = sequences(&[270, 40, 140], spec);
        let gpu = device(ORDERS[1]);
        let whole = in_steps::<f32>(&gpu, &all, &[270], spec);
        let pieces = in_steps::<f32>(&gpu, &all, &[5, 129, 134, 262, 263, 270], spec);
        assert!(whole == pieces);
        let singly: Vec<usize> = (35..41).chain(126..131).chain(255..=270).collect();
        let alone = all
            .chunks(1)
            .map(|one| in_steps::<f32>(&gpu, one, &singly, spec));
        assert!(whole == alone.collect::<Vec<_>>().concat());
    }
}

#[test]
fn a_cache_in_bfloat16_rounds_queries_keys_and_values() {
    let spec = shape(6, 2, 16, Some(100));
    let all = sequences(&[150, 40], spec);
    let found = in_every_order(|gpu| in_steps::<u16>(gpu, &all, &[30, 140, 141, 150], spec));
    let round = |x| half::bf16::from_f32(x).to_f32();
    assert_close(&found, &expected(&all, spec, round), 1e-5);
}

/// A sequence that continues in copied blocks has the results of the one that it was copied from,
/// whatever is written to the originals later.
#[test]
fn blocks_are_copied_one_after_the_other() {
    let spec = shape(2, 1, 8, None);
    let mut one = sequences(&[40], spec).remove(0);
    one.blocks = vec![3, 5, 7];
    let results = in_every_order(|gpu| {
        let mut cache = PagedCache::<f32>::new(gpu, &spec, 12).unwrap();
        step(&mut cache, gpu, &[(&one, 0..39)], spec);
        let expected = step(&mut cache, gpu, &[(&one, 39..40)], spec);
        // The first copy's source is a destination, as is the second's destination a source.
        let copies = [(5, 8), (7, 5), (3, 7), (8, 3), (3, 3), (5, 11)];
        cache
            .copy(&BlockCopies::new(gpu, &copies).unwrap())
            .unwrap();
        let moved = Sequence {
            qkv: one.qkv.clone(),
            blocks: vec![7, 3, 11],
        };
        let found = step(&mut cache, gpu, &[(&moved, 39..40)], spec);
        assert_eq!(found, expected);
        found
    });
    assert!(results.iter().all(|x| x.is_finite()));
}

#[test]
fn steps_that_do_not_fit_are_refused() {
    let gpu = device(ORDERS[0]);
    let spec = shape(4, 2, 8, None);
    let message = |count, past, blocks: &[u32], group| {
        let new = NewTokens {
            count,
            past,
            blocks,
        };
        let mut cache = PagedCache::<f32>::new(&gpu, &spec, 4).unwrap();
        let qkv = gpu.zeros(spec.columns()).unwrap();
        let step = PagedStep::new(&gpu, &[new], group);
        let result = step.and_then(|step| cache.attend(qkv.slice(), &step, spec));
        result
            .err()
            .map_or(String::new(), |error| error.to_string())
    };
    assert_eq!(message(1, 16, &[0, 3], 2), "");
    assert!(message(1, 32, &[0, 3], 2).contains("33 tokens in 2 blocks"));
    assert!(message(1, 16, &[0, 4], 2).contains("cache block 4 of 4"));
    assert!(message(2, 8, &[0], 2).contains("64 elements where 128"));
    assert!(message(1, 8, &[0], 3).contains("[2, 8, 2]"));
    assert!(message(1, usize::MAX, &[0], 2).contains("tokens"));
    assert!(message(1, 8, &[1 << 28], 2).contains("number 268435456"));
    let mut cache = PagedCache::<f32>::new(&gpu, &spec, 4).unwrap();
    let copies = BlockCopies::new(&gpu, &[(1, 4)]).unwrap();
    assert!(cache.copy(&copies).is_err());
}
