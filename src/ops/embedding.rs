//! Token (and learned position) embeddings: rows of a table by id.
//!
//! candle's graph does not contain parameters. The result enters it through an anchor, a scalar
//! `Var` of value zero, so that the backward pass reaches this operation, which adds each row's
//! gradient to the table's arena.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, Var, bail};

use super::backend::Backend;
use super::param::Param;
use super::place::{Gpu, Host, Place, enter, read};
use super::profile;
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
    match table.backend() {
        Backend::Host(_) => embed_in::<Host>(table, ids),
        Backend::Gpu(..) => embed_in::<Gpu>(table, ids),
        Backend::Composed(_) => composed(table, ids),
    }
}

fn embed_in<P: Place>(table: &Arc<Param>, ids: &[u32]) -> Result<Tensor> {
    let (width, backend) = (table.dims()[1], table.backend());
    let rows = read::<P, _>(table.value(), backend, |table| {
        let _span = profile::span("embedding");
        P::gather(table, width, ids)
    })?;
    let (own, places) = (table.clone(), Box::<[u32]>::from(ids));
    let shape = (ids.len(), width);
    enter::<P>(
        "embedding",
        &anchor(table)?,
        rows,
        shape,
        backend,
        move |anchor, _, dy| {
            let _span = profile::span("embedding backward");
            own.with_gradient::<P>(|grad| {
                read::<P, _>(dy, own.backend(), |dy| {
                    P::scatter_add(grad, dy, width, &places)
                })
            })?;
            anchor.zeros_like()
        },
    )
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
