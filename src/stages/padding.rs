//! The padding token of a reward model, in its configuration and in its tokenizer.
//!
//! transformers scores the last token that is not padding. A model that scores at an answer's end
//! token therefore needs a padding token that never ends an answer. If the tokenizer names none
//! (Llama 2, Mistral), one of its special tokens becomes the padding token: a token made for
//! padding, the unknown token, a reserved token, or BOS. The embedding keeps its size. If EOS is
//! the only special token (GPT-2), EOS pads, as in TRL, and the score is read at the token before
//! it.

use anyhow::Result;

use crate::config::ScoreAt;
use crate::data::tokenizer::Tokenizer;
use crate::model::hf_config::HfConfig;

/// Names of padding tokens in known tokenizers.
const NAMES: [&str; 8] = [
    "<|finetune_right_pad_id|>",
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<PAD>",
    "<|padding|>",
    "<|pad_token|>",
    "<|vision_pad|>",
];

/// Chooses the padding token of a reward model before training, and the position of its score.
/// Returns the tokenizer with the choice as its `pad_token`. A model that already scores at the
/// last token before the padding keeps its padding token.
///
/// # Errors
/// If the tokenizer names no EOS, or one of its files cannot be read.
pub fn choose_padding(config: &mut HfConfig, tokenizer: Tokenizer) -> Result<Tokenizer> {
    let eos = tokenizer.eos_id()?;
    config.stop_also(tokenizer.end_ids());
    let pad = match (config.score_at, config.decoder.pad_token_id) {
        (ScoreAt::LastNonPad, Some(pad)) => pad,
        _ => match candidates(config, &tokenizer).find(|&id| config.can_pad_scores(id)) {
            Some(pad) => pad,
            None => {
                config.score_at = ScoreAt::LastNonPad;
                eos
            }
        },
    };
    config.decoder.pad_token_id = Some(pad);
    match tokenizer.pad_id() == Some(pad) {
        true => Ok(tokenizer),
        false => Ok(tokenizer.padded_with(pad)?),
    }
}

/// A note on the padding token in `config`; `None` if it is `before`.
pub fn in_words(config: &HfConfig, before: Option<u32>, tokenizer: &Tokenizer) -> Option<String> {
    let pad = config
        .decoder
        .pad_token_id
        .filter(|&pad| before != Some(pad))?;
    let token = tokenizer.token(pad).unwrap_or_default();
    Some(match config.score_at {
        ScoreAt::Eos => format!(
            "the tokenizer has no padding token, or one that ends answers; {token:?} (id {pad}) is \
             the padding token in the files of the model and of the tokenizer"
        ),
        ScoreAt::LastNonPad => format!(
            "the tokenizer's special tokens all end answers; {token:?} (id {pad}) is the padding \
             token, and the score is read at the token before it, as in TRL"
        ),
    })
}

/// Ids of tokens that may pad, in order of preference. All but the tokenizer's own padding token
/// are special tokens: naming an ordinary token `pad_token` would change how text is tokenized.
fn candidates<'t>(config: &HfConfig, tokenizer: &'t Tokenizer) -> impl Iterator<Item = u32> + 't {
    let own = config.decoder.pad_token_id.into_iter();
    let named = NAMES.iter().filter_map(|name| tokenizer.token_id(name));
    let is_reserved = |id: &u32| {
        tokenizer
            .token(*id)
            .is_some_and(|name| name.contains("reserved"))
    };
    let reserved = tokenizer.special_ids().into_iter().filter(is_reserved);
    let special = own
        .chain(named)
        .chain(tokenizer.unk_id())
        .chain(reserved)
        .chain(tokenizer.bos_id())
        .filter(|&id| tokenizer.is_special(id));
    tokenizer.pad_id().into_iter().chain(special)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::{BpeTraining, END_OF_TEXT};
    use crate::model::config::{DecoderConfig, Family, Geometry, Head};
    use std::path::Path;

    /// A tokenizer with the special tokens EOS, `<fill>` and `more`, whose files name `roles`.
    fn tokenizer(more: &[&str], roles: &[(&str, &str)]) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let mut special = vec![END_OF_TEXT.to_owned(), "<fill>".to_owned()];
        special.extend(more.iter().map(|&name| name.to_owned()));
        let training = BpeTraining {
            special_tokens: special,
            pad_token: "<fill>".to_owned(),
            ..BpeTraining::new(300)
        };
        Tokenizer::train_bpe(&["a text"], &training)
            .unwrap()
            .save(&folder)
            .unwrap();
        let roles = roles.iter().chain([&("eos_token", END_OF_TEXT)]);
        let roles: serde_json::Map<_, _> = roles
            .map(|&(role, name)| (role.to_owned(), name.into()))
            .collect();
        let text = serde_json::to_vec(&roles).unwrap();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            std::fs::write(folder.path().join(file), &text).unwrap();
        }
        Tokenizer::load(folder.path()).unwrap()
    }

    fn config(pad: Option<u32>) -> HfConfig {
        let sizes = Geometry {
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: None,
            vocab_size: 400,
            max_position_embeddings: 8,
        };
        let mut decoder = DecoderConfig::from_scratch(Family::Llama, &sizes).unwrap();
        decoder.head = Head::Score;
        decoder.pad_token_id = pad;
        HfConfig::new(decoder)
    }

    /// Name of the chosen padding token, and position of the score.
    fn chosen(tokenizer: Tokenizer, pad: Option<u32>) -> (String, ScoreAt) {
        let mut config = config(pad);
        let tokenizer = choose_padding(&mut config, tokenizer).unwrap();
        let id = config.decoder.pad_token_id.unwrap();
        assert_eq!(
            tokenizer.pad_id(),
            Some(id),
            "tokenizer and configuration agree"
        );
        (tokenizer.token(id).unwrap(), config.score_at)
    }

    #[test]
    fn padding_is_the_tokenizers_own_or_a_token_that_ends_no_answer() {
        let of = |more: &[&str], roles: &[(&str, &str)]| chosen(tokenizer(more, roles), None).0;
        assert_eq!(
            of(
                &["<unk>"],
                &[("pad_token", "<fill>"), ("unk_token", "<unk>")]
            ),
            "<fill>"
        );
        let llama = [("unk_token", "<unk>"), ("bos_token", "<s>")];
        assert_eq!(of(&["<unk>", "<s>"], &llama), "<unk>");
        assert_eq!(of(&["<unk>", "<s>", "<pad>"], &llama), "<pad>");
        assert_eq!(
            of(&["<|reserved_1|>", "<s>"], &[("bos_token", "<s>")]),
            "<|reserved_1|>"
        );
        assert_eq!(of(&["<s>"], &[("bos_token", "<s>")]), "<s>");
        // EOS as padding ends every answer.
        assert_eq!(
            of(
                &["<unk>"],
                &[("pad_token", END_OF_TEXT), ("unk_token", "<unk>")]
            ),
            "<unk>"
        );
    }

    #[test]
    fn a_tokenizer_with_one_special_token_is_padded_with_it_and_scored_before_it() {
        let found = chosen(tokenizer(&[], &[("bos_token", END_OF_TEXT)]), None);
        assert_eq!(found, (END_OF_TEXT.to_owned(), ScoreAt::LastNonPad));
        // The configuration's padding token is an ordinary token: naming it in the tokenizer would
        // change how text is tokenized.
        let found = chosen(tokenizer(&[], &[]), Some(300));
        assert_eq!(found, (END_OF_TEXT.to_owned(), ScoreAt::LastNonPad));
    }

    #[test]
    fn the_tokenizers_files_name_the_choice() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(None);
        let tokenizer = tokenizer(&["<unk>"], &[("unk_token", "<unk>")]);
        choose_padding(&mut config, tokenizer)
            .unwrap()
            .save(&folder)
            .unwrap();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let text = std::fs::read(Path::new(folder.path()).join(file)).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(json["pad_token"], "<unk>", "{file}");
            assert_eq!(json["eos_token"], END_OF_TEXT, "{file}");
        }
    }
}
