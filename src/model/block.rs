//! One decoder layer, assembled by configuration.

use candle_core::{Result, Tensor};

use super::config::{Activation, DecoderConfig, Norm as NormKind, QkNorm, weight};
use crate::ops::activation::{gelu_tanh, gelu_tanh_operation, swiglu, swiglu_operation};
use crate::ops::attention::{self, Attention, Segments};
use crate::ops::dispatch::has_kernels;
use crate::ops::linear::{Linear, Projection};
use crate::ops::norm::Norm;
use crate::ops::param::ParamStore;
use crate::ops::residual::{Keep, Operation, residual};
use crate::ops::rope::Angles;

/// A layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Clone)]
pub struct Block {
    pub spec: Attention,
    attention_norm: Norm,
    qkv: Linear,
    qk_norm: Option<(Norm, Norm)>,
    output: Linear,
    mlp_norm: Norm,
    up: Linear,
    activation: Activation,
    down: Linear,
}

impl Block {
    /// Takes the layer's parameters from `store`.
    pub fn new(store: &ParamStore, config: &DecoderConfig, layer: usize) -> Result<Self> {
        let names = config.family.names();
        let get = Getter {
            store,
            config,
            prefix: format!("{}.{layer}", names.layers),
        };
        let qk_norm = match (config.qk_norm, names.qk_norm) {
            (QkNorm::PerHead, [query, key]) => Some((get.norm(query)?, get.norm(key)?)),
            _ => None,
        };
        Ok(Self {
            spec: attention_of(config, layer),
            attention_norm: get.norm(names.attention_norm)?,
            qkv: get.linear(names.qkv, config.qkv_bias)?,
            qk_norm,
            output: get.linear(&[names.output], config.output_bias)?,
            mlp_norm: get.norm(names.mlp_norm)?,
            up: get.linear(names.up, config.mlp_bias)?,
            activation: config.activation,
            down: get.linear(&[names.down], config.mlp_bias)?,
        })
    }

    /// The layer on packed sequences as two nodes of the graph; `None` where a part has no operation to be chained.
    pub fn forward_chained(
        &self,
        x: &Tensor,
        angles: Option<&Angles>,
        segments: &Segments,
        keep: Keep,
    ) -> Option<Result<Tensor>> {
        let activation = match self.activation {
            _ if !has_kernels(x.device()) => return None,
            Activation::SwiGlu => swiglu_operation(),
            Activation::GeluTanh => gelu_tanh_operation(),
            Activation::Gelu => return None,
        };
        let mlp = vec![
            self.mlp_norm.operation(0, 1),
            self.up.operation(),
            activation,
            self.down.operation(),
        ];
        let attended = residual(x, self.attention_chain(angles, segments), keep);
        Some(attended.and_then(|x| residual(&x, mlp, keep)))
    }

    fn attention_chain(&self, angles: Option<&Angles>, segments: &Segments) -> Vec<Operation> {
        let spec = self.spec;
        let mut chain = vec![self.attention_norm.operation(0, 1), self.qkv.operation()];
        if let Some((query, key)) = &self.qk_norm {
            chain.push(query.operation(0, spec.query_heads));
            chain.push(key.operation(spec.outputs(), spec.kv_heads));
        }
        chain.extend(angles.map(|a| a.operation(spec.query_heads + spec.kv_heads)));
        chain.extend([
            attention::operation(segments, spec),
            self.output.operation(),
        ]);
        chain
    }

    /// Runs the layer on `[tokens, hidden]`; `attend` turns `q | k | v` rows into mixed values.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: Option<&Angles>,
        attend: impl FnOnce(&Tensor, Attention) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let spec = self.spec;
        let mut qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        if let Some((query, key)) = &self.qk_norm {
            qkv = query.forward_groups(&qkv, 0, spec.query_heads)?;
            qkv = key.forward_groups(&qkv, spec.outputs(), spec.kv_heads)?;
        }
        if let Some(angles) = angles {
            qkv = angles.rotate(&qkv, spec.query_heads + spec.kv_heads)?;
        }
        let x = (x + self.output.forward(&attend(&qkv, spec)?)?)?;
        let inner = self.up.forward(&self.mlp_norm.forward(&x)?)?;
        let inner = match self.activation {
            Activation::SwiGlu => swiglu(&inner)?,
            Activation::GeluTanh => gelu_tanh(&inner)?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        x + self.down.forward(&inner)?
    }
}

fn attention_of(config: &DecoderConfig, layer: usize) -> Attention {
    Attention {
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
        window: config.window(layer),
    }
}

struct Getter<'a> {
    store: &'a ParamStore,
    config: &'a DecoderConfig,
    prefix: String,
}

impl Getter<'_> {
    fn norm(&self, name: &str) -> Result<Norm> {
        norm(self.store, self.config, &format!("{}.{name}", self.prefix))
    }

    fn linear(&self, names: &[&str], bias: bool) -> Result<Linear> {
        let part = |name: &&str| {
            let get = |leaf: &str| self.store.get(&format!("{}.{name}.{leaf}", self.prefix));
            Ok(Projection {
                weight: get("weight")?,
                bias: bias.then(|| get("bias")).transpose()?,
            })
        };
        Linear::new(names.iter().map(part).collect::<Result<_>>()?)
    }
}

/// The normalisation called `name`, of the kind that the configuration says.
pub fn norm(store: &ParamStore, config: &DecoderConfig, name: &str) -> Result<Norm> {
    let weight = store.get(&weight(name))?;
    Ok(match config.norm {
        NormKind::Rms { eps } => Norm::Rms {
            weight,
            eps: eps as f32,
        },
        NormKind::Layer { eps } => Norm::Layer {
            weight,
            bias: store.get(&format!("{name}.bias"))?,
            eps: eps as f32,
        },
    })
}
