use kernels::attention::Segments;
use kernels::random::Key;
use kernels::random::rand::Rng;
use kernels::random::rand_distr::StandardNormal;

use super::*;
use crate::ops::attention::attend;
use crate::ops::place::{read, tensor};

fn noise(rows: usize, columns: usize) -> Tensor {
    let draws = Key::new(5, 1u64).stream(0, 0).sample_iter(StandardNormal);
    let data: Vec<f32> = draws.take(rows * columns).collect();
    Tensor::from_vec(data, (rows, columns), &Device::Cpu).expect("shape fits")
}

const COMPOSED: Backend = Backend::Composed(Device::Cpu);

/// The backends that can be tested here.
fn backends() -> Vec<Backend> {
    vec![
        Backend::CPU,
        COMPOSED,
        #[cfg(feature = "emulate")]
        Backend::emulated(kernels::device::emulator::Order::Forward),
    ]
}

/// Attention over a cache of this backend.
fn attended(
    cache: &mut Cache,
    qkv: &Tensor,
    news: &[NewTokens],
    spec: Attention,
    backend: &Backend,
) -> Result<Tensor> {
    fn in_place<P: CachePlace>(
        cache: &mut Cache,
        qkv: &Tensor,
        news: &[NewTokens],
        spec: Attention,
        backend: &Backend,
    ) -> Result<Tensor> {
        let shape = (qkv.dims2()?.0, spec.outputs());
        cache.begin(news, spec.group())?;
        let out = read::<P, _>(&qkv.contiguous()?, backend, |qkv| {
            cache.attend::<P>(0, qkv, news, spec)
        })?;
        tensor::<P>(out, shape, backend)
    }
    match backend {
        Backend::Host(_) => in_place::<Host>(cache, qkv, news, spec, backend),
        Backend::Gpu(..) => in_place::<Gpu>(cache, qkv, news, spec, backend),
        Backend::Composed(_) => cache.attend_tensor(0, qkv, news, spec),
    }
}

/// Feeds a sequence in pieces through scattered blocks and returns all rows.
fn in_pieces(qkv: &Tensor, pieces: &[usize], spec: Attention, backend: &Backend) -> Result<Tensor> {
    let mut cache = Cache::new(spec, 1, 8, backend)?;
    let (mut past, mut parts) = (0, Vec::new());
    for &count in pieces {
        let new = NewTokens {
            count,
            past,
            blocks: &[7, 2, 5],
        };
        let piece = qkv.narrow(0, past, count)?;
        parts.push(attended(&mut cache, &piece, &[new], spec, backend)?);
        past += count;
    }
    Tensor::cat(&parts, 0)
}

#[test]
fn pieces_through_blocks_have_the_bits_of_the_packed_forward() -> Result<()> {
    for (kv_heads, head_dim, window) in [
        (2, 8, None),
        (4, 32, None),
        (1, 24, Some(9)),
        (2, 16, Some(20)),
    ] {
        let spec = Attention {
            query_heads: 4,
            kv_heads,
            head_dim,
            scale: 0.3,
            window,
        };
        let qkv = noise(41, spec.columns());
        let whole = attend(&qkv, &Segments::from_lengths([41]), spec, &Backend::CPU)?;
        let pieces = [9, 1, 1, 2, 5, 1, 17, 5];
        let cached = in_pieces(&qkv, &pieces, spec, &Backend::CPU)?;
        assert_eq!(
            cached.to_vec2::<f32>()?,
            whole.to_vec2::<f32>()?,
            "{spec:?}"
        );
        let composed = in_pieces(&qkv, &pieces, spec, &COMPOSED)?;
        let gap = (composed - whole)?
            .abs()?
            .flatten_all()?
            .max(0)?
            .to_scalar::<f32>()?;
        assert!(gap < 1e-5, "{spec:?}: {gap}");
    }
    Ok(())
}

/// Prompts that several tasks read, one token, and none, in one step.
#[test]
fn sequences_of_one_step_have_the_bits_of_each_alone() -> Result<()> {
    let spec = Attention {
        query_heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.3,
        window: None,
    };
    let counts = [17, 0, 1, 9];
    let qkv = noise(27, spec.columns());
    let whole = attend(&qkv, &Segments::from_lengths(counts), spec, &Backend::CPU)?;
    let blocks = [[3, 0], [1, 6], [5, 2], [4, 7]];
    let news = [0, 1, 2, 3].map(|i| NewTokens {
        count: counts[i],
        past: 0,
        blocks: &blocks[i],
    });
    let mut cache = Cache::new(spec, 1, 8, &Backend::CPU)?;
    let found = attended(&mut cache, &qkv, &news, spec, &Backend::CPU)?;
    assert_eq!(found.to_vec2::<f32>()?, whole.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn a_block_takes_the_bytes_that_are_said() -> Result<()> {
    let spec = Attention {
        query_heads: 4,
        kv_heads: 2,
        head_dim: 24,
        scale: 1.0,
        window: None,
    };
    let bytes = |cache: &Cache| -> usize {
        let of = |layer: &CacheStore| match layer {
            CacheStore::Blocks(blocks) => blocks.bytes(),
            CacheStore::Paged { blocks, .. } => blocks.bytes(),
            CacheStore::Rows { keys, values } => {
                (keys.elem_count() + values.elem_count()) * size_of::<f32>()
            }
        };
        cache.layers.iter().map(of).sum()
    };
    for backend in backends() {
        let cache = Cache::new(spec, 3, 5, &backend)?;
        let said = Cache::block_bytes(spec, 3, &backend);
        assert_eq!(bytes(&cache), 5 * said);
    }
    Ok(())
}

#[test]
fn copied_blocks_hold_the_same_tokens() -> Result<()> {
    let spec = Attention {
        query_heads: 2,
        kv_heads: 1,
        head_dim: 8,
        scale: 1.0,
        window: None,
    };
    let qkv = noise(6, spec.columns());
    for backend in backends() {
        let mut cache = Cache::new(spec, 1, 4, &backend)?;
        let feed = |rows: [usize; 2], block: u32, cache: &mut Cache| {
            let [past, count] = rows;
            let new = NewTokens {
                count,
                past,
                blocks: &[block],
            };
            attended(cache, &qkv.narrow(0, past, count)?, &[new], spec, &backend)
        };
        feed([0, 5], 0, &mut cache)?;
        cache.copy(&[(0, 3)])?;
        let first = feed([5, 1], 0, &mut cache)?.to_vec2::<f32>()?;
        let second = feed([5, 1], 3, &mut cache)?.to_vec2::<f32>()?;
        assert_eq!(first, second);
    }
    Ok(())
}
