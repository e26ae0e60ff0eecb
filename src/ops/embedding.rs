//! Token (and learned position) embeddings: rows of a table by id.
//!
//! candle's graph does not contain parameters. The result enters it through an anchor, a scalar
//! `Var` of value zero, so that the backward pass reaches this operation, which adds each row's
//! gradient to the table's arena.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, Var, bail};
use kernels::host::rows;

use super::param::Param;
use super::profile;
use super::storage;
use super::tap::tap;

/// `ids` → `[ids, width]`, rows of `table` (`[rows, width]`).
///
/// # Errors
/// If an id lies outside the table.
pub fn embed(table: &Arc<Param>, ids: &[u32]) -> Result<Tensor> {
    let rows = table.value().dims2()?.0;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        bail!("{}: id {id} in a table of {rows} rows", table.name());
    }
    if !table.backend().has_kernels() {
        return composed(table, ids);
    }
    let op = Embed {
        table: table.clone(),
        ids: ids.into(),
    };
    anchor(table)?.apply_op1(op)
}

/// [`embed`] as a composition of candle operations.
///
/// # Errors
/// As [`embed`].
pub fn composed(table: &Arc<Param>, ids: &[u32]) -> Result<Tensor> {
    let index = Tensor::from_slice(ids, ids.len(), table.value().device())?;
    let rows = table.value().index_select(&index, 0)?;
    if !table.is_trained() {
        return Ok(rows);
    }
    let rows = rows.broadcast_add(&anchor(table)?)?;
    let table = table.clone();
    tap(&rows, move |grad| {
        table.accumulate(&table.value().zeros_like()?.index_add(&index, grad, 0)?)
    })
}

/// The anchor: tracked if the table is trained, and with it the whole forward pass.
fn anchor(table: &Param) -> Result<Tensor> {
    let zero = Tensor::zeros(1, DType::F32, table.value().device())?;
    if table.is_trained() {
        Ok(Var::from_tensor(&zero)?.as_tensor().clone())
    } else {
        Ok(zero)
    }
}

struct Embed {
    table: Arc<Param>,
    ids: Box<[u32]>,
}

impl CustomOp1 for Embed {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, _anchor: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = profile::span("embedding");
        let width = self.table.dims()[1];
        let out = storage::read(self.table.value(), |table| {
            rows::gather(table, width, &self.ids)
        })?;
        Ok((CpuStorage::F32(out), Shape::from((self.ids.len(), width))))
    }

    fn bwd(&self, anchor: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _span = profile::span("embedding backward");
        let (dy, width) = (dy.contiguous()?, self.table.dims()[1]);
        storage::read(&dy, |dy| {
            self.table.accumulate_with(|grad| {
                for (row, &id) in dy.chunks_exact(width).zip(&self.ids) {
                    let to = &mut grad[id as usize * width..][..width];
                    to.iter_mut().zip(row).for_each(|(to, g)| *to += g);
                }
            })
        })??;
        Ok(Some(anchor.zeros_like()?))
    }
}
