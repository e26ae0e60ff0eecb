//! `[model]` → the decoder that pretraining makes from scratch.

use anyhow::{Context as _, Result};

use crate::config::Architecture;
use crate::data::tokenizer::Tokenizer;
use crate::model::config::{DecoderConfig, Geometry, NormKind, Position, SlidingWindow};

/// The decoder that `[model]` describes, with the tokenizer's size and special tokens.
///
/// # Errors
/// The errors of [`describe`], and if the tokenizer has no EOS.
pub fn describe_for(sizes: &Architecture, tokenizer: &Tokenizer) -> Result<DecoderConfig> {
    let mut config = describe(sizes, tokenizer.vocab_size())?;
    config.bos_token_id = tokenizer.bos_id();
    config.eos_token_ids = vec![tokenizer.eos_id()?];
    config.pad_token_id = tokenizer.pad_id();
    Ok(config)
}

/// The decoder that `[model]` describes, without special tokens. Its vocabulary is `vocab_size`,
/// unless the table has one.
///
/// # Errors
/// Sizes or options that the family does not have.
pub fn describe(sizes: &Architecture, vocab_size: usize) -> Result<DecoderConfig> {
    let geometry = geometry(sizes, vocab_size);
    let mut config = DecoderConfig::from_scratch(sizes.family, &geometry).context("[model]")?;
    set_options(&mut config, sizes);
    config.validate().context("[model]")?;
    Ok(config)
}

/// Sets the options that `[model]` has besides sizes.
fn set_options(config: &mut DecoderConfig, sizes: &Architecture) {
    let (NormKind::Rms { eps } | NormKind::Layer { eps }) = &mut config.norm;
    *eps = sizes.rms_norm_eps;
    if let Position::Rope(rope) = &mut config.position {
        rope.theta = sizes.rope_theta;
    }
    config.sliding_window = sizes.sliding_window.map(|size| SlidingWindow {
        size,
        layers: (0..sizes.num_hidden_layers).collect(),
    });
    config.tie_word_embeddings = sizes.tie_word_embeddings;
    config.initializer_range = sizes.initializer_range;
}

fn geometry(sizes: &Architecture, vocab_size: usize) -> Geometry {
    Geometry {
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        num_key_value_heads: sizes.num_key_value_heads,
        head_dim: Some(sizes.head_dim),
        vocab_size: sizes.vocab_size.unwrap_or(vocab_size),
        max_position_embeddings: sizes.max_position_embeddings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;

    /// Three heads of 32 in a width of 100.
    fn sizes(family: Family) -> Architecture {
        Architecture {
            family,
            hidden_size: 100,
            intermediate_size: 200,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            num_key_value_heads: 1,
            head_dim: 32,
            vocab_size: None,
            max_position_embeddings: 64,
            rope_theta: 5e3,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            sliding_window: Some(8),
            initializer_range: 0.01,
        }
    }

    #[test]
    fn what_the_table_says_is_what_the_decoder_has() {
        let config = describe(&sizes(Family::Mistral), 300).unwrap();
        assert_eq!((config.head_dim, config.vocab_size), (32, 300));
        assert_eq!((config.window(0), config.window(1)), (Some(8), Some(8)));
        assert_eq!(config.norm, NormKind::Rms { eps: 1e-6 });
        let own = Architecture {
            vocab_size: Some(320),
            ..sizes(Family::Mistral)
        };
        assert_eq!(describe(&own, 300).unwrap().vocab_size, 320);
    }

    #[test]
    fn what_the_family_has_not_is_refused() {
        let llama = Architecture {
            hidden_size: 96,
            ..sizes(Family::Llama)
        };
        let error = format!("{:#}", describe(&llama, 300).unwrap_err());
        assert!(
            error.starts_with("[model]: `sliding_window` is 8, but llama has none"),
            "{error}"
        );
    }
}
