//! Decoders that share the lower layers of another one: the same bits as a decoder that owns all
//! its layers, in whole passes and in passes cut at the boundary.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use collimate::model::boundary::Collector;
use collimate::model::config::{DecoderConfig, Family, Head, TensorSpec, is_embedding, layer_of};
use collimate::model::generator::Generator;
use collimate::model::hf_config::HfConfig;
use collimate::model::weights::SaveDtype;
use collimate::model::{Decoder, Gradient, Holding, Recompute, TensorSource};
use collimate::ops::attention::cached::Cache;
use collimate::ops::backend::Backend;
use collimate::ops::head::Target;
use collimate::ops::param::{Param, Trainability};
use collimate::ops::profile;
use kernels::attention::Segments;
use kernels::attention::{BLOCK_TOKENS, NewTokens};
use rollout::{
    CacheBudget, Completion, GenerationSettings, LastToken, Request, SequenceId, generate,
};

use crate::differences::{decoder, two_layers};
use crate::support::{Anyhow, COMPOSED, folder, gap, load, tensor};

/// Layers of the trunk.
const TRUNK: usize = 1;

fn in_trunk(spec: &TensorSpec) -> bool {
    layer_of(&spec.name).map_or(is_embedding(&spec.name), |layer| layer < TRUNK)
}

fn ids() -> Vec<u32> {
    (0..17).map(|i| (i * 11 + 3) % 30).collect()
}

fn segments() -> Segments {
    Segments::from_lengths([6, 3, 8])
}

/// A frozen decoder of the family, and one on its trunk, with copies of the upper layers, norm and
/// head that are trained.
fn base_and_branch(family: Family) -> Anyhow<(Decoder, Decoder)> {
    base_and_branch_of(two_layers(family)?, &Backend::CPU)
}

fn base_and_branch_of(config: DecoderConfig, backend: &Backend) -> Anyhow<(Decoder, Decoder)> {
    let config = HfConfig::new(config);
    let frozen = |_: &TensorSpec| Trainability::Frozen;
    let base = Decoder::fresh(config.clone(), 1, frozen, backend)?;
    let source = |spec: &TensorSpec| {
        let param = base.params().get(&spec.name)?;
        Ok(match in_trunk(spec) {
            true => TensorSource::Shared(param),
            false => TensorSource::Values(param.read(<[f32]>::to_vec)?, Trainability::Trained),
        })
    };
    let branch = Decoder::assemble(config, source, backend)?;
    Ok((base, branch))
}

fn bits(x: &Tensor) -> Anyhow<Vec<u32>> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().map(|x| x.to_bits()).collect())
}

/// A completion's states as generation kept them, and as a single pass computes them.
fn kept_and_computed(
    base: &Decoder,
    requests: &[Request],
    completion: &Completion,
    kept: &mut Collector,
) -> Anyhow<(SequenceId, Vec<f32>, Tensor)> {
    let prompt = &requests[completion.request].prompt;
    let ids = [&prompt[..], &completion.tokens].concat();
    let whole = base.hidden_at(TRUNK, &ids, &Segments::from_lengths([ids.len()]))?;
    let id = SequenceId {
        request: completion.request,
        sample: completion.sample,
    };
    let states = kept.take(id, prompt.len()).expect("states");
    let rows = [&states.prompt[..], &states.generated].concat();
    Ok((id, rows, whole))
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&bits| f32::from_bits(bits)).collect()
}

/// Hidden states, and the gradients of all trained parameters for a loss that reads log-probs from
/// the head.
fn probe(model: &Decoder, hidden: &Tensor) -> Anyhow<[Vec<u32>; 2]> {
    let rows = hidden.dim(0)?.min(16);
    let targets: Vec<Target> = (0..rows).map(|row| Target::whole(row, 5)).collect();
    let y = model.log_probs(hidden, &targets, 0.9)?.log_probs;
    model.params().zero_grad()?;
    (&y * tensor(y.dims(), 4))?.sum_all()?.backward()?;
    let arena = model.params().arena().expect("trained");
    assert_eq!(model.params().unreached(), Vec::<&str>::new());
    Ok([bits(hidden)?, bits(arena)?])
}

#[test]
fn a_pass_from_the_boundary_has_the_bits_of_the_whole() -> Anyhow {
    for family in Family::ALL {
        let (base, branch) = base_and_branch(family)?;
        let (ids, segments) = (ids(), segments());
        let boundary = base.hidden_at(TRUNK, &ids, &segments)?;
        let skipped = branch.forward_from(TRUNK, &boundary, &segments, None, Gradient::Skip)?;
        let whole = base.forward(&ids, &segments, Gradient::Skip)?;
        assert_eq!(bits(&skipped)?, bits(&whole)?, "{family:?}");
        for recompute in [Recompute::None, Recompute::Block] {
            let record = Gradient::Record(recompute);
            let whole = probe(&branch, &branch.forward(&ids, &segments, record)?)?;
            let cut = branch.forward_from(TRUNK, &boundary, &segments, None, record)?;
            assert_eq!(probe(&branch, &cut)?, whole, "{family:?} {recompute:?}");
        }
    }
    Ok(())
}

#[test]
fn the_path_without_kernels_can_be_cut_too() -> Anyhow {
    let (base, branch) = base_and_branch_of(two_layers(Family::Qwen3)?, &COMPOSED)?;
    let (ids, segments) = (ids(), segments());
    let record = Gradient::Record(Recompute::None);
    let boundary = base.hidden_at(TRUNK, &ids, &segments)?;
    let cut = branch.forward_from(TRUNK, &boundary, &segments, None, record)?;
    let whole = probe(&branch, &branch.forward(&ids, &segments, record)?)?;
    assert_eq!(probe(&branch, &cut)?, whole);
    Ok(())
}

/// Wanted rows out of order and one of them twice, and the gradients that flow back from them.
#[test]
fn wanted_rows_have_the_bits_of_the_whole() -> Anyhow {
    const ROWS: [u32; 4] = [7, 2, 16, 7];
    let rows = Tensor::new(&ROWS, &Device::Cpu)?;
    for family in Family::ALL {
        let (base, branch) = base_and_branch(family)?;
        let (ids, segments) = (ids(), segments());
        let boundary = base.hidden_at(TRUNK, &ids, &segments)?;
        for gradient in [
            Gradient::Skip,
            Gradient::Record(Recompute::None),
            Gradient::Record(Recompute::Block),
        ] {
            let wanted = || Some(ROWS.into());
            let whole = branch
                .forward(&ids, &segments, gradient)?
                .index_select(&rows, 0)?;
            let some = branch.forward_at(&ids, &segments, wanted(), gradient)?;
            let cut = branch.forward_from(TRUNK, &boundary, &segments, wanted(), gradient)?;
            assert_eq!(bits(&some)?, bits(&whole)?, "{family:?} {gradient:?}");
            assert_eq!(bits(&cut)?, bits(&whole)?, "{family:?} {gradient:?}");
            if gradient != Gradient::Skip {
                let [_, wanted] = probe(&branch, &whole)?;
                let close = |found: [Vec<u32>; 2]| gap(&floats(&found[1]), &floats(&wanted)) < 1e-4;
                assert!(close(probe(&branch, &some)?), "{family:?} {gradient:?}");
                assert!(close(probe(&branch, &cut)?), "{family:?} {gradient:?}");
            }
        }
    }
    Ok(())
}

/// A prompt of five tokens, then one token at a time.
#[test]
fn generation_hands_out_the_boundary_states() -> Anyhow {
    let (base, branch) = base_and_branch(Family::Llama)?;
    let ids = ids();
    let mut cache = Cache::new(branch.attention(0), 2, 2, &Backend::CPU)?;
    assert!(ids.len() <= 2 * BLOCK_TOKENS);
    let (mut kept, mut last) = (Vec::new(), Vec::new());
    let steps = std::iter::once(0..5).chain((5..ids.len()).map(|i| i..i + 1));
    for step in steps {
        let news = [NewTokens {
            count: step.len(),
            past: step.start,
            blocks: &[0, 1][..step.end.div_ceil(BLOCK_TOKENS)],
        }];
        let hidden = branch.hidden_at_cached(TRUNK, &ids[step], &news, &mut cache)?;
        kept.push(hidden.clone());
        last.push(branch.forward_from_cached(TRUNK, hidden, &news, &mut cache)?);
    }
    let whole = Segments::from_lengths([ids.len()]);
    let boundary = base.hidden_at(TRUNK, &ids, &whole)?;
    assert_eq!(bits(&Tensor::cat(&kept, 0)?)?, bits(&boundary)?);
    let hidden = branch.forward_from(TRUNK, &boundary, &whole, None, Gradient::Skip)?;
    let hidden = hidden.narrow(0, 4, ids.len() - 4)?;
    assert_eq!(bits(&Tensor::cat(&last, 0)?)?, bits(&hidden)?);
    Ok(())
}

/// Samples that share a prompt, in a cache too small for all of them: preempted samples read their
/// tokens again, and the states are those of one pass over the whole sequence, including its last
/// token.
#[test]
fn kept_states_survive_giving_way() -> Anyhow {
    let mut config = two_layers(Family::Llama)?;
    config.max_position_embeddings = 96;
    let (base, branch) = base_and_branch_of(config, &Backend::CPU)?;
    let request = |key: u32| Request {
        key: key.into(),
        prompt: (0..10).map(|i| (i * 7 + key) % 30).collect(),
        max_new_tokens: 50,
        min_new_tokens: 50,
        samples: 3,
    };
    let requests: Vec<Request> = (0..3).map(request).collect();
    let settings = GenerationSettings {
        cache: CacheBudget::Tokens(6 * BLOCK_TOKENS),
        last_token: LastToken::Read,
        max_batch: 8,
        ..GenerationSettings::default()
    };
    let mut generator = Generator::keeping(&branch, TRUNK);
    let output = generate(&mut generator, &requests, &settings, &mut |_| {})?;
    assert!(output.stats.preemptions > 0, "{:?}", output.stats);
    let unread = GenerationSettings {
        last_token: LastToken::Unread,
        ..settings
    };
    let alone = generate(
        &mut Generator::new(&branch),
        &requests,
        &unread,
        &mut |_| {},
    )?;
    assert_eq!(output.completions, alone.completions);
    let mut kept = generator.take_states().expect("what was kept");
    for completion in &output.completions {
        let (id, rows, whole) = kept_and_computed(&base, &requests, completion, &mut kept)?;
        let found: Vec<u32> = rows.iter().map(|x| x.to_bits()).collect();
        assert_eq!(found, bits(&whole)?, "{id:?}");
    }
    Ok(())
}

/// On devices without kernels the bits of a product depend on its number of rows, so states agree
/// only up to rounding.
#[test]
fn last_tokens_are_read_without_kernels_too() -> Anyhow {
    let (base, branch) = base_and_branch_of(two_layers(Family::Qwen3)?, &COMPOSED)?;
    let request = |key: u32| Request {
        key: key.into(),
        prompt: (0..4 + key).map(|i| (i * 7 + key) % 30).collect(),
        max_new_tokens: 5 + key as usize,
        min_new_tokens: 5 + key as usize,
        samples: 2,
    };
    let requests: Vec<Request> = (0..3).map(request).collect();
    let settings = GenerationSettings {
        last_token: LastToken::Read,
        ..GenerationSettings::default()
    };
    let mut generator = Generator::keeping(&branch, TRUNK);
    let output = generate(&mut generator, &requests, &settings, &mut |_| {})?;
    let mut kept = generator.take_states().expect("what was kept");
    for completion in &output.completions {
        let (id, rows, whole) = kept_and_computed(&base, &requests, completion, &mut kept)?;
        assert!(gap(&rows, &floats(&bits(&whole)?)) < 1e-5, "{id:?}");
    }
    Ok(())
}

/// For the last token of a sequence only the states at the boundary are computed: counted by the
/// rows that attention wrote, layer by layer.
#[test]
fn a_last_token_is_read_below_the_boundary_alone() -> Anyhow {
    const PART: &str = "a last token is read";
    let (_, branch) = base_and_branch(Family::Llama)?;
    let request = |key: u32| Request {
        key: key.into(),
        prompt: (0..5).map(|i| (i * 7 + key) % 30).collect(),
        max_new_tokens: 4,
        min_new_tokens: 4,
        samples: 2,
    };
    let requests: Vec<Request> = (0..3).map(request).collect();
    let attended = |last_token| -> Anyhow<u64> {
        let settings = GenerationSettings {
            last_token,
            ..GenerationSettings::default()
        };
        profile::enable();
        let part = profile::part(PART);
        let mut generator = Generator::keeping(&branch, TRUNK);
        generate(&mut generator, &requests, &settings, &mut |_| {})?;
        drop(part);
        let attention = profile::take()[&(PART, "cached attention")];
        Ok(attention.bytes / (branch.attention(0).outputs() * size_of::<f32>()) as u64)
    };
    // Two layers read each prompt once and three of the four tokens of its two samples each; with a
    // trunk of one layer, that layer also reads the fourth.
    let (unread, read) = (attended(LastToken::Unread)?, attended(LastToken::Read)?);
    assert_eq!(unread, 2 * (3 * 5 + 6 * 3));
    assert_eq!(read, unread + 6);
    Ok(())
}

#[test]
fn what_is_shared_is_held_once() -> Anyhow {
    let bytes = |params: &mut dyn Iterator<Item = &Arc<Param>>| -> usize {
        params.map(|p| p.bytes()).sum()
    };
    let (base, branch) = base_and_branch(Family::Llama)?;
    let (all, own) = (
        bytes(&mut base.params().iter()),
        bytes(&mut branch.params().owned()),
    );
    let shared = bytes(&mut branch.params().shared());
    // Parameters: embedding 30 × 16; per layer two norms, q and o, k and v, and three feed-forward
    // matrices.
    let layer = 2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16;
    assert_eq!(shared, (30 * 16 + layer) * 4);
    assert_eq!(own, (layer + 16 + 30 * 16) * 4);
    assert_eq!(all, own + shared);
    for param in branch.params().shared() {
        assert!(Arc::ptr_eq(param, &base.params().get(param.name())?));
    }
    Ok(())
}

/// A folder that holds only a branch loads onto another decoder's trunk; the decoder's own folder
/// is whole.
#[test]
fn a_branch_is_loaded_onto_a_trunk_and_saved_whole() -> Anyhow {
    let name = "llama";
    let frozen = |_: &TensorSpec| Trainability::Frozen;
    let base = Decoder::load(&folder(name), Head::LanguageModel, 0, frozen, &Backend::CPU)?;
    let holding = |spec: &TensorSpec| match in_trunk(spec) {
        true => Holding::Shared(base.params().get(&spec.name).expect("one of its tensors")),
        false => Holding::Own(Trainability::Trained),
    };
    let branch = Decoder::load_sharing(&folder(name), Head::Score, 7, holding, &Backend::CPU)?;
    let alone = Decoder::load(&folder(name), Head::Score, 7, frozen, &Backend::CPU)?;
    let (ids, segments) = (ids(), segments());
    let pass = |model: &Decoder| -> Anyhow<Vec<u32>> {
        let hidden = model.forward(&ids, &segments, Gradient::Skip)?;
        bits(&model.scores(&hidden)?)
    };
    assert_eq!(pass(&branch)?, pass(&alone)?);
    let saved = tempfile::tempdir()?;
    let branch = Decoder::load_sharing(
        &folder(name),
        Head::LanguageModel,
        0,
        holding,
        &Backend::CPU,
    )?;
    branch.save(saved.path(), SaveDtype::Float32)?;
    let again = Decoder::load(saved.path(), Head::LanguageModel, 0, frozen, &Backend::CPU)?;
    for param in base.params().iter() {
        assert_eq!(
            bits(param.value())?,
            bits(again.params().get(param.name())?.value())?
        );
    }
    Ok(())
}

#[test]
fn what_cannot_be_shared_or_cut_is_refused() -> Anyhow {
    let trained = decoder(two_layers(Family::Llama)?, &Backend::CPU)?;
    let (segments, hidden) = (segments(), tensor(&[17, 16], 3));
    let refused = |model: &Decoder, layer, hidden: &Tensor, gradient| {
        let result = model.forward_from(layer, hidden, &segments, None, gradient);
        result.map(|_| ()).unwrap_err().to_string()
    };
    let record = Gradient::Record(Recompute::None);
    let message = refused(&trained, 1, &hidden, record);
    assert!(
        message.contains("is trained and is below layer 1"),
        "{message}"
    );
    let message = refused(&trained, 3, &hidden, Gradient::Skip);
    assert!(message.contains("2 layers"), "{message}");
    let wanted = Some([17].into());
    let found = trained.forward_at(&ids(), &segments, wanted, Gradient::Skip);
    let message = found.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("row 17 is wanted"), "{message}");
    for gradient in [record, Gradient::Skip] {
        let found = trained.forward_at(&ids(), &segments, Some([].into()), gradient);
        let message = found.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("no row of a pass of 17 rows"), "{message}");
    }
    let message = refused(&trained, 1, &tensor(&[16, 16], 3), Gradient::Skip);
    assert!(message.contains("[17, 16] are needed"), "{message}");

    let other = load("llama", Head::LanguageModel, &Backend::CPU)?;
    let config = HfConfig::new(two_layers(Family::Llama)?);
    let source = |spec: &TensorSpec| Ok(TensorSource::Shared(other.params().get(&spec.name)?));
    let result = Decoder::assemble(config, source, &Backend::CPU);
    let message = result.map(|_| ()).unwrap_err().to_string();
    assert!(
        message.contains("name and shape must be the same"),
        "{message}"
    );
    Ok(())
}
