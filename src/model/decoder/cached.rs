//! Passes over new tokens of sequences whose earlier tokens are in a cache. A pass can be cut at
//! the input of a layer: some sequences need only the layers below it.

use candle_core::{Result, Tensor};
use kernels::attention::NewTokens;

use super::layers::Tokens;
use super::{Decoder, Gradient};
use crate::ops::attention::cached::Cache;
use crate::ops::residual::WantedRows;

impl Decoder {
    /// Reads new tokens of several sequences into the cache's layers below `layer` and returns the
    /// input of that layer, `[tokens, hidden]` in the order of `ids`: the rows of
    /// [`Self::hidden_at`], bit for bit.
    ///
    /// # Errors
    /// As [`Self::forward`]; if there is no such layer or a sequence lacks blocks.
    pub fn hidden_at_cached(
        &self,
        layer: usize,
        ids: &[u32],
        news: &[NewTokens],
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.check_boundary(layer)?;
        let (positions, skip) = (positions(news), Gradient::Skip);
        let x = self.embed(ids, &positions, skip)?;
        let mut tokens = Tokens::Cached(cache, news);
        self.run(0..layer, x, &positions, &None, skip, &mut tokens)
    }

    /// Reads tokens into the cache's layers from `layer` on, given their rows of
    /// [`Self::hidden_at_cached`]. Returns the hidden state of each sequence's last token:
    /// `[sequences, hidden]`, the rows of [`Self::forward`], bit for bit.
    ///
    /// # Errors
    /// As [`Self::hidden_at_cached`].
    pub fn forward_from_cached(
        &self,
        layer: usize,
        hidden: Tensor,
        news: &[NewTokens],
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.check_boundary(layer)?;
        let above = layer..self.layers.len();
        let (positions, wanted, skip) = (positions(news), last_rows(news), Gradient::Skip);
        let mut tokens = Tokens::Cached(cache, news);
        let x = self.run(above, hidden, &positions, &wanted, skip, &mut tokens)?;
        self.norm.forward(&x)
    }
}

/// Positions of new tokens in their sequences.
fn positions(news: &[NewTokens]) -> Vec<u32> {
    let places = |n: &NewTokens| n.past as u32..(n.past + n.count) as u32;
    news.iter().flat_map(places).collect()
}

/// Row of each sequence's last new token; `None` if these are all rows.
fn last_rows(news: &[NewTokens]) -> WantedRows {
    let last = news.iter().scan(0, |end, n| {
        *end += n.count as u32;
        Some(*end - 1)
    });
    news.iter().any(|n| n.count != 1).then(|| last.collect())
}
