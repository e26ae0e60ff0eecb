//! Validation of a [`DecoderConfig`], with errors by the keys of the family's `config.json`.

use thiserror::Error;

use super::{DecoderConfig, Family, NormKind, Position, RopeConfig, RopeScaling};

/// Largest size in a configuration: a guard against absurd files, not a limit of the engine.
const MOST: usize = 1 << 24;
const MOST_LAYERS: usize = 1 << 12;

/// A configuration that no model can have. Keys are named as in the family's `config.json`.
#[derive(Debug, Clone, PartialEq, Error)]
#[allow(
    missing_docs,
    reason = "the messages state what variants and fields hold"
)]
pub enum InvalidDecoder {
    #[error("`{key}` is {found}; choose a number from 1 to {most}")]
    Size {
        key: &'static str,
        found: usize,
        most: usize,
    },
    #[error(
        "`{key}` is {value}, not a multiple of `{divisor_key}` = {divisor}; change one of them"
    )]
    NotAMultiple {
        key: &'static str,
        value: usize,
        divisor_key: &'static str,
        divisor: usize,
    },
    #[error("`head_dim` is {0}; rotary positions turn pairs of values, so it must be even")]
    OddHeadDim(usize),
    #[error("`{key}` is {found}; expected {expected}")]
    Number {
        key: &'static str,
        found: f64,
        expected: &'static str,
    },
    #[error("`{key}` is {found}, but {family} {rule}")]
    Family {
        key: &'static str,
        found: String,
        family: Family,
        rule: &'static str,
    },
}

impl DecoderConfig {
    /// Checks that the sizes fit together and that the family supports all settings.
    ///
    /// # Errors
    /// The first problem, by the keys of the family's `config.json`.
    pub fn validate(&self) -> Result<(), InvalidDecoder> {
        self.check_sizes()?;
        self.check_heads()?;
        self.check_numbers()?;
        self.check_window()
    }

    pub(super) fn check_sizes(&self) -> Result<(), InvalidDecoder> {
        let sizes = [
            ("hidden_size", self.hidden_size, MOST),
            ("intermediate_size", self.intermediate_size, MOST),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MOST),
            ("num_key_value_heads", self.num_key_value_heads, MOST),
            ("vocab_size", self.vocab_size, MOST),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                MOST,
            ),
        ];
        for (name, found, most) in sizes {
            if !(1..=most).contains(&found) {
                let key = self.family.config_key(name);
                return Err(InvalidDecoder::Size { key, found, most });
            }
        }
        Ok(())
    }

    pub(super) fn check_multiple(
        &self,
        (name, value): (&'static str, usize),
        (divisor_name, divisor): (&'static str, usize),
    ) -> Result<(), InvalidDecoder> {
        if value.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(InvalidDecoder::NotAMultiple {
            key: self.family.config_key(name),
            value,
            divisor_key: self.family.config_key(divisor_name),
            divisor,
        })
    }

    fn check_heads(&self) -> Result<(), InvalidDecoder> {
        let heads = ("num_attention_heads", self.num_attention_heads);
        self.check_multiple(heads, ("num_key_value_heads", self.num_key_value_heads))?;
        // transformers refuses a Llama whose width its heads do not divide, even where head_dim is
        // given.
        if matches!(self.family, Family::Llama | Family::Gpt2) {
            self.check_multiple(("hidden_size", self.hidden_size), heads)?;
        }
        if !(1..=MOST).contains(&self.head_dim) {
            return Err(InvalidDecoder::Size {
                key: "head_dim",
                found: self.head_dim,
                most: MOST,
            });
        }
        let width = self.num_attention_heads.saturating_mul(self.head_dim);
        if width > MOST {
            return Err(InvalidDecoder::Size {
                key: "num_attention_heads × head_dim",
                found: width,
                most: MOST,
            });
        }
        if matches!(self.position, Position::Rope(_)) && !self.head_dim.is_multiple_of(2) {
            return Err(InvalidDecoder::OddHeadDim(self.head_dim));
        }
        if self.family == Family::Gpt2 && self.key_value_size() != self.hidden_size {
            let found = format!("{} of {}", self.num_key_value_heads, self.head_dim);
            let rule = "has as many key-value heads as query heads, `n_embd / n_head` wide";
            return Err(self.against_family("num_key_value_heads", found, rule));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), InvalidDecoder> {
        let (NormKind::Rms { eps } | NormKind::Layer { eps }) = self.norm;
        self.check_number("rms_norm_eps", eps, eps > 0.0, "a number above 0")?;
        let std = self.initializer_range;
        let expected = "a number from 0 to 1";
        self.check_number(
            "initializer_range",
            std,
            (0.0..=1.0).contains(&std),
            expected,
        )?;
        match self.position {
            Position::Rope(rope) => self.check_rope(&rope),
            Position::Learned => Ok(()),
        }
    }

    fn check_rope(&self, rope: &RopeConfig) -> Result<(), InvalidDecoder> {
        let positive =
            |name, value| self.check_number(name, value, value > 0.0, "a number above 0");
        positive("rope_theta", rope.theta)?;
        match rope.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                ..
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                // The interpolation divides by the difference of the two.
                let expected = "a number above `low_freq_factor`";
                self.check_number("high_freq_factor", high, high > low, expected)
            }
        }
    }

    fn check_number(
        &self,
        name: &'static str,
        found: f64,
        fits: bool,
        expected: &'static str,
    ) -> Result<(), InvalidDecoder> {
        if fits && found.is_finite() {
            return Ok(());
        }
        Err(InvalidDecoder::Number {
            key: self.family.config_key(name),
            found,
            expected,
        })
    }

    fn check_window(&self) -> Result<(), InvalidDecoder> {
        let Some(window) = &self.sliding_window else {
            return Ok(());
        };
        let found = || window.size.to_string();
        if window.size == 0 {
            return Err(InvalidDecoder::Size {
                key: "sliding_window",
                found: 0,
                most: usize::MAX,
            });
        }
        match self.family {
            Family::Llama | Family::Gpt2 => {
                let rule = "has none; use mistral for a window in every layer";
                Err(self.against_family("sliding_window", found(), rule))
            }
            Family::Mistral if !window.layers.iter().copied().eq(0..self.num_hidden_layers) => {
                let rule = "limits every layer or none";
                Err(self.against_family("sliding_window", found(), rule))
            }
            _ => Ok(()),
        }
    }

    fn against_family(
        &self,
        key: &'static str,
        found: String,
        rule: &'static str,
    ) -> InvalidDecoder {
        InvalidDecoder::Family {
            key,
            found,
            family: self.family,
            rule,
        }
    }
}
