//! The CPU.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};
use kernels::host::product::Write;
use kernels::host::rows;

use super::Place;
use crate::ops::backend::Backend;
use crate::ops::storage::{self, Reading};

/// The CPU: rows are vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host;

impl Place for Host {
    type Rows = Vec<f32>;
    type View<'a> = &'a [f32];
    type ViewMut<'a> = &'a mut [f32];

    fn view(rows: &Vec<f32>) -> &[f32] {
        rows
    }

    fn shorter<'s, 'l: 's>(x: Self::View<'l>) -> Self::View<'s> {
        x
    }

    fn view_mut(rows: &mut Vec<f32>) -> &mut [f32] {
        rows
    }

    fn len(x: &[f32]) -> usize {
        x.len()
    }

    fn part<'a>(x: Self::View<'a>, range: Range<usize>) -> Self::View<'a> {
        &x[range]
    }

    fn zeros(_: &[f32], len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn split<'a>(x: Self::ViewMut<'a>, at: usize) -> (Self::ViewMut<'a>, Self::ViewMut<'a>) {
        x.split_at_mut(at)
    }

    fn copied(x: &[f32]) -> Result<Vec<f32>> {
        Ok(rows::copied(x))
    }

    fn add(to: &mut [f32], from: &[f32]) -> Result<()> {
        rows::add(to, from);
        Ok(())
    }

    fn gather(x: &[f32], width: usize, indices: &[u32]) -> Result<Vec<f32>> {
        Ok(rows::gather(x, width, indices))
    }

    fn scatter(x: &[f32], indices: &[u32], count: usize, write: Write) -> Result<Vec<f32>> {
        let width = x.len() / indices.len().max(1);
        let mut all = vec![0f32; count * width];
        rows::scatter(&mut all, width, indices, x, write);
        Ok(all)
    }

    fn scatter_add(to: &mut [f32], x: &[f32], width: usize, indices: &[u32]) -> Result<()> {
        rows::scatter(to, width, indices, x, Write::Add);
        Ok(())
    }

    fn of<'a, G: Deref<Target = Storage>>(
        reading: &'a Reading<G>,
        _: &'a Backend,
    ) -> Result<&'a [f32]> {
        match reading.storage() {
            Storage::Cpu(CpuStorage::F32(elements)) => Ok(&elements[reading.range()]),
            _ => bail!("a tensor on the CPU is needed"),
        }
    }

    fn update(
        tensor: &Tensor,
        _: &Backend,
        f: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        storage::update(tensor, |elements| result = f(elements))?;
        result
    }

    fn storage(rows: Vec<f32>, _: &Device) -> Result<Storage> {
        Ok(Storage::Cpu(CpuStorage::F32(rows)))
    }
}
