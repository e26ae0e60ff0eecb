//! One decoder layer, assembled by configuration.

use candle_core::{Result, Tensor};
use kernels::attention::Attention;

use super::config::{Activation, DecoderConfig, NormKind, Position, QkNorm, weight};
use super::lora::{Lora, a_of, b_of};
use crate::ops::activation::{gelu_link, gelu_tanh_link, swiglu_composed, swiglu_link};
use crate::ops::adapter::Adapter;
use crate::ops::attention::{self, PackedTokens};
use crate::ops::linear::{Linear, Projection};
use crate::ops::norm::Norm;
use crate::ops::operation::{ChainPlace, Link, OperationKind};
use crate::ops::param::ParamStore;
use crate::ops::residual::{Branch, WantedRows, add_branch, add_result, run};
use crate::ops::rope::Angles;

/// A layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Clone)]
pub struct Block {
    /// Shape and scale of the attention of the layer.
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
    /// The layer with its parameters from `store`, including the adapters that `lora` lists.
    pub fn new(
        store: &ParamStore,
        config: &DecoderConfig,
        lora: Option<&Lora>,
        layer: usize,
    ) -> Result<Self> {
        let names = config.family.names();
        let get = Getter {
            store,
            config,
            lora,
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

    /// The layer on packed sequences as branches of the residual stream; only the
    /// `wanted` rows of its result are computed.
    pub fn branches(
        &self,
        angles: Option<&Angles>,
        tokens: &PackedTokens,
        wanted: WantedRows,
    ) -> [Branch; 2] {
        let attention = Branch {
            chain: self.attention_chain(angles, tokens),
            wanted,
        };
        let mlp = Branch {
            chain: self.mlp_chain(),
            wanted: None,
        };
        [attention, mlp]
    }

    /// Runs the layer on rows of `x`, in place and without a graph; `attend` computes attention
    /// from `q | k | v` rows. Only the `wanted` rows of the result remain.
    pub fn forward_rows<P: ChainPlace>(
        &self,
        x: &mut P::Rows,
        mut rows: usize,
        angles: Option<&Angles>,
        wanted: &WantedRows,
        attend: impl FnOnce(P::View<'_>, Attention) -> Result<P::Rows>,
    ) -> Result<()> {
        let qkv = run::<P>(P::view(x), rows, &self.qkv_chain(angles))?;
        let mut mixed = attend(P::view(&qkv), self.spec)?;
        if let Some(wanted) = wanted {
            let some = |all: &P::Rows| {
                let all = P::view(all);
                P::gather(all, P::len(all) / rows.max(1), wanted)
            };
            (*x, mixed) = (some(x)?, some(&mixed)?);
            rows = wanted.len();
        }
        let (sum, output) = (P::view_mut(x), self.output.link());
        add_result::<P>(sum, P::view(&mixed), rows, &output)?;
        add_branch::<P>(x, rows, &self.mlp_chain())
    }

    fn mlp_chain(&self) -> Vec<Link> {
        let activation = match self.activation {
            Activation::SwiGlu => swiglu_link(),
            Activation::GeluTanh => gelu_tanh_link(),
            Activation::Gelu => gelu_link(),
        };
        let (norm, up, down) = (self.mlp_norm.link(0, 1), self.up.link(), self.down.link());
        vec![norm, up, activation, down]
    }

    /// Operations from hidden states to the `q | k | v` rows of attention.
    fn qkv_chain(&self, angles: Option<&Angles>) -> Vec<Link> {
        let spec = self.spec;
        let mut chain = vec![self.attention_norm.link(0, 1), self.qkv.link()];
        if let Some((query, key)) = &self.qk_norm {
            chain.push(query.link(0, spec.query_heads));
            chain.push(key.link(spec.outputs(), spec.kv_heads));
        }
        chain.extend(angles.map(|a| a.link(spec.query_heads + spec.kv_heads)));
        chain
    }

    fn attention_chain(&self, angles: Option<&Angles>, tokens: &PackedTokens) -> Vec<Link> {
        let mut chain = self.qkv_chain(angles);
        chain.extend([attention::link(tokens, self.spec), self.output.link()]);
        chain
    }

    /// The layer on `[tokens, hidden]` as a composition of candle operations; `attend` computes
    /// attention from `q | k | v` rows. Returns the `wanted` rows.
    pub fn composed(
        &self,
        x: &Tensor,
        angles: Option<&Angles>,
        wanted: &WantedRows,
        attend: impl FnOnce(&Tensor, Attention) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let spec = self.spec;
        let mut qkv = self.qkv.composed(&self.attention_norm.composed(x)?)?;
        if let Some((query, key)) = &self.qk_norm {
            qkv = query.composed_groups(&qkv, 0, spec.query_heads)?;
            qkv = key.composed_groups(&qkv, spec.outputs(), spec.kv_heads)?;
        }
        if let Some(angles) = angles {
            qkv = angles.composed(&qkv, spec.query_heads + spec.kv_heads)?;
        }
        let mixed = attend(&qkv, spec)?;
        let (x, mixed) = match wanted {
            None => (x.clone(), mixed),
            Some(wanted) => {
                let rows = Tensor::from_slice(wanted, wanted.len(), x.device())?;
                (x.index_select(&rows, 0)?, mixed.index_select(&rows, 0)?)
            }
        };
        let x = (x + self.output.composed(&mixed)?)?;
        let inner = self.up.composed(&self.mlp_norm.composed(&x)?)?;
        let inner = match self.activation {
            Activation::SwiGlu => swiglu_composed(&inner)?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        x + self.down.composed(&inner)?
    }
}

/// Kinds of the operations of [`Block::branches`] in layer `layer`.
pub fn branch_kinds(
    config: &DecoderConfig,
    lora: Option<&Lora>,
    layer: usize,
) -> [Vec<OperationKind>; 2] {
    use OperationKind::{Attention, Gelu, Linear, Norm, Rope, SwiGlu};
    let (spec, inner) = (attention_of(config, layer), config.intermediate_size);
    let names = config.family.names();
    let linear = |modules: &[&str], outputs| Linear {
        outputs,
        inner: lora.map_or(0, |lora| {
            let name = |module: &&str| format!("{}.{layer}.{module}", names.layers);
            let adapted = modules.iter().map(name).filter(|name| lora.adapts(name));
            lora.r * adapted.count()
        }),
    };
    let mut attention = vec![Norm, linear(names.qkv, spec.columns())];
    if config.qk_norm == QkNorm::PerHead {
        attention.extend([Norm, Norm]);
    }
    if let Position::Rope(_) = config.position {
        attention.push(Rope);
    }
    let output = linear(&[names.output], config.hidden_size);
    attention.extend([Attention(spec.outputs()), output]);
    let (up, activation) = match config.activation {
        Activation::SwiGlu => (2 * inner, SwiGlu),
        Activation::GeluTanh | Activation::Gelu => (inner, Gelu),
    };
    let (up, down) = (
        linear(names.up, up),
        linear(&[names.down], config.hidden_size),
    );
    let mlp = vec![Norm, up, activation, down];
    [attention, mlp]
}

/// Shape and scale of the attention of a layer.
pub fn attention_of(config: &DecoderConfig, layer: usize) -> Attention {
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
    lora: Option<&'a Lora>,
    prefix: String,
}

impl Getter<'_> {
    fn norm(&self, name: &str) -> Result<Norm> {
        norm(self.store, self.config, &format!("{}.{name}", self.prefix))
    }

    fn linear(&self, names: &[&str], bias: bool) -> Result<Linear> {
        let part = |name: &&str| {
            let module = format!("{}.{name}", self.prefix);
            let get = |leaf: &str| self.store.get(&format!("{module}.{leaf}"));
            Ok(Projection {
                weight: get("weight")?,
                bias: bias.then(|| get("bias")).transpose()?,
                adapter: self.adapter(&module)?,
            })
        };
        Linear::new(names.iter().map(part).collect::<Result<_>>()?)
    }

    fn adapter(&self, module: &str) -> Result<Option<Adapter>> {
        let Some(lora) = self.lora.filter(|lora| lora.adapts(module)) else {
            return Ok(None);
        };
        Ok(Some(Adapter {
            a: self.store.get(&a_of(module))?,
            b: self.store.get(&b_of(module))?,
            scale: lora.scale(),
        }))
    }
}

/// The normalisation named `name`, of the configuration's kind.
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kernels::attention::Segments;

    use super::*;
    use crate::config::LoraTable;
    use crate::model::config::TensorSpec;
    use crate::model::frequencies::rotation;
    use crate::model::hf_config::HfConfig;
    use crate::ops::backend::Backend;
    use crate::ops::param::{InitialParam, Trainability};

    fn zeros(spec: TensorSpec) -> InitialParam {
        InitialParam {
            data: vec![0.0; spec.numel()],
            name: spec.name,
            shape: spec.shape,
            training: Trainability::Frozen,
        }
    }

    /// Plans count the memory of the listed operations, passes run the layer's.
    #[test]
    fn the_branches_of_every_family_have_the_listed_kinds() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
        for folder in fixtures.read_dir().unwrap() {
            let config = HfConfig::read(&folder.unwrap().path()).unwrap().decoder;
            let adapters = Lora::new(&LoraTable::default(), &config).unwrap();
            for lora in [None, Some(&adapters)] {
                let tensors = lora.map_or_else(Vec::new, Lora::tensors);
                let tensors = config.tensors().into_iter().chain(tensors);
                let store = ParamStore::new(tensors.map(zeros).collect(), &Backend::CPU).unwrap();
                let layer = Block::new(&store, &config, lora, 1).unwrap();
                let angles = rotation(&config).map(|rotation| rotation.angles(&[0, 1]));
                let tokens = PackedTokens::new(&Segments::from_lengths([2]));
                let branches = layer.branches(angles.as_ref(), &tokens, None);
                let kinds = |branch: Branch| branch.chain.iter().map(|link| link.kind()).collect();
                let kinds: [Vec<OperationKind>; 2] = branches.map(kinds);
                let listed = branch_kinds(&config, lora, 1);
                assert_eq!(kinds, listed, "{:?} {lora:?}", config.family);
            }
        }
    }
}
