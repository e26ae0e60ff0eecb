//! Passes through a range of layers, over packed sequences or a cache.
//!
//! The backend decides how a layer is computed: by kernels of this crate, or as a composition of
//! candle's operations.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, Var, bail};
use kernels::attention::NewTokens;

use super::{Decoder, Gradient, Recompute};
use crate::model::block::Block;
use crate::ops::attention::cached::{Cache, CachePlace};
use crate::ops::attention::{self, PackedTokens};
use crate::ops::backend::Backend;
use crate::ops::operation::ChainPlace;
use crate::ops::param::Trainability;
use crate::ops::place::{Gpu, Host, read, select_rows, tensor};
use crate::ops::recompute::recompute;
use crate::ops::residual::{WantedRows, residuals, run as run_chain};
use crate::ops::rope::Angles;

/// The tokens of a forward pass as attention sees them.
pub(super) enum Tokens<'a> {
    Packed(PackedTokens, Recompute),
    Cached(&'a mut Cache, &'a [NewTokens<'a>]),
}

impl Decoder {
    /// Runs `layers` and returns the `wanted` rows of the last one's result.
    pub(super) fn run(
        &self,
        layers: Range<usize>,
        x: Tensor,
        positions: &[u32],
        wanted: &WantedRows,
        gradient: Gradient,
        tokens: &mut Tokens,
    ) -> Result<Tensor> {
        if layers.is_empty() {
            return match wanted {
                None => Ok(x),
                Some(_) if x.track_op() => {
                    bail!("a recorded pass without layers has no wanted rows")
                }
                Some(rows) => select_rows(&x, rows, self.store.backend()),
            };
        }
        let angles = self.rotation.as_ref().map(|r| r.angles(positions));
        let of = |layer: usize| match layer + 1 == layers.end {
            true => wanted.clone(),
            false => None,
        };
        let angles = angles.as_ref();
        let layers = layers.clone();
        if let Tokens::Cached(cache, news) = tokens {
            cache.begin(news, self.layers[layers.start].0.spec.group())?;
        }
        match self.store.backend() {
            Backend::Host(_) => self.run_in::<Host>(layers, x, angles, of, gradient, tokens),
            Backend::Gpu(..) => self.run_in::<Gpu>(layers, x, angles, of, gradient, tokens),
            Backend::Composed(_) => self.run_composed(layers, x, angles, of, gradient, tokens),
        }
    }

    /// [`Self::run`] with kernels: in place below the graph, and as one node of the graph above.
    fn run_in<P: ChainPlace + CachePlace>(
        &self,
        layers: Range<usize>,
        mut x: Tensor,
        angles: Option<&Angles>,
        wanted: impl Fn(usize) -> WantedRows,
        gradient: Gradient,
        tokens: &mut Tokens,
    ) -> Result<Tensor> {
        let graph = self.graph_begins(&layers, &x, gradient);
        if layers.start < graph {
            x = self.run_rows::<P>(&x, layers.start..graph, angles, &wanted, tokens)?;
        }
        if graph == layers.end {
            return Ok(x);
        }
        let Tokens::Packed(packed, recompute) = tokens else {
            bail!("a pass over a cache cannot be differentiated");
        };
        let x = enter_graph(x, gradient, self.layers[graph].1)?;
        let branches = (graph..layers.end).flat_map(|layer| {
            let block = &self.layers[layer].0;
            block.branches(angles, packed, wanted(layer))
        });
        residuals(&x, branches.collect(), *recompute, self.store.backend())
    }

    /// [`Self::run`] with candle's operations, each a node of the graph.
    fn run_composed(
        &self,
        layers: Range<usize>,
        mut x: Tensor,
        angles: Option<&Angles>,
        wanted: impl Fn(usize) -> WantedRows,
        gradient: Gradient,
        tokens: &mut Tokens,
    ) -> Result<Tensor> {
        for layer in layers {
            let (block, training) = &self.layers[layer];
            x = enter_graph(x, gradient, *training)?;
            x = run_layer(block, layer, &x, angles, wanted(layer), tokens)?;
        }
        Ok(x)
    }

    /// The first of `layers` that is recorded in the graph: the first trained one, or the end of
    /// the range.
    fn graph_begins(&self, layers: &Range<usize>, x: &Tensor, gradient: Gradient) -> usize {
        let trained = |&layer: &usize| self.layers[layer].1 == Trainability::Trained;
        let first = match gradient {
            Gradient::Record(_) if x.track_op() => Some(layers.start),
            Gradient::Record(_) => layers.clone().find(trained),
            Gradient::Skip => None,
        };
        first.unwrap_or(layers.end)
    }

    /// Runs `layers` in place, without a graph.
    fn run_rows<P: ChainPlace + CachePlace>(
        &self,
        x: &Tensor,
        layers: Range<usize>,
        angles: Option<&Angles>,
        wanted: impl Fn(usize) -> WantedRows,
        tokens: &mut Tokens,
    ) -> Result<Tensor> {
        let (width, backend) = (x.dims2()?.1, self.store.backend());
        let mut x = read::<P, _>(&x.contiguous()?, backend, P::copied)?;
        for layer in layers {
            let block = &self.layers[layer].0;
            let rows = P::len(P::view(&x)) / width;
            let attend = |qkv: P::View<'_>, spec| match tokens {
                Tokens::Cached(cache, news) => cache.attend::<P>(layer, qkv, news, spec),
                Tokens::Packed(packed, _) => {
                    run_chain::<P>(qkv, rows, &[attention::link(packed, spec)])
                }
            };
            block.forward_rows::<P>(&mut x, rows, angles, &wanted(layer), attend)?;
        }
        let rows = P::len(P::view(&x)) / width;
        tensor::<P>(x, (rows, width), backend)
    }
}

/// Makes `x` the entry of the graph if trained parameters follow and nothing below was recorded.
pub(super) fn enter_graph(x: Tensor, gradient: Gradient, next: Trainability) -> Result<Tensor> {
    match (gradient, next) {
        (Gradient::Record(_), Trainability::Trained) if !x.track_op() => {
            Ok(Var::from_tensor(&x)?.as_tensor().clone())
        }
        _ => Ok(x),
    }
}

fn run_layer(
    block: &Block,
    layer: usize,
    x: &Tensor,
    angles: Option<&Angles>,
    wanted: WantedRows,
    tokens: &mut Tokens,
) -> Result<Tensor> {
    match tokens {
        Tokens::Cached(cache, news) => block.composed(x, angles, &wanted, |qkv, spec| {
            cache.attend_tensor(layer, qkv, news, spec)
        }),
        Tokens::Packed(packed, recompute) if x.track_op() => {
            run_recorded(block, x, angles, packed, wanted, *recompute)
        }
        Tokens::Packed(packed, _) => block.composed(x, angles, &wanted, |qkv, spec| {
            attention::composed(qkv, packed.segments(), spec)
        }),
    }
}

/// Runs a layer that will be differentiated.
fn run_recorded(
    block: &Block,
    x: &Tensor,
    angles: Option<&Angles>,
    tokens: &PackedTokens,
    wanted: WantedRows,
    mode: Recompute,
) -> Result<Tensor> {
    let (block, angles, tokens) = (block.clone(), angles.cloned(), tokens.clone());
    let run = move |x: &Tensor| {
        block.composed(x, angles.as_ref(), &wanted, |qkv, spec| {
            attention::composed(qkv, tokens.segments(), spec)
        })
    };
    match mode {
        Recompute::None => run(x),
        Recompute::Block => recompute(x, Arc::new(run)),
    }
}
