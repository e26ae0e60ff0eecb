//! Places of computation: the host, whose rows are slices, and a GPU, whose rows are arrays in its
//! memory.
//!
//! The place is a type: an operation has an implementation for each, and what runs operations one
//! after the other is generic. The type is chosen once, where a [`Backend`] is matched.

mod border;
#[cfg_attr(not(feature = "cuda"), path = "place/no_cuda.rs")]
pub(super) mod cuda;
mod gpu;
mod host;

use std::ops::{Deref, Range};

use candle_core::{Device, Result, Storage, Tensor};
use kernels::host::product::Write;

use super::backend::Backend;
use super::storage::Reading;
use super::work::DeviceFailure;

pub(crate) use border::{enter, tensor};
pub use host::Host;
pub use kernels::device::Gpu;

/// A place where rows of `f32` are kept and computed.
pub trait Place: Sized + Send + Sync + 'static {
    /// Rows that an operation made.
    type Rows: Send + Sync;
    /// Borrowed rows.
    type View<'a>: Copy;
    /// Borrowed rows that can be changed.
    type ViewMut<'a>;

    /// Borrows rows.
    fn view(rows: &Self::Rows) -> Self::View<'_>;

    /// The same rows, borrowed for a shorter time.
    fn shorter<'s, 'l: 's>(x: Self::View<'l>) -> Self::View<'s>;

    /// Borrows rows for changes.
    fn view_mut(rows: &mut Self::Rows) -> Self::ViewMut<'_>;

    /// Number of elements.
    fn len(x: Self::View<'_>) -> usize;

    /// A part of the elements.
    ///
    /// # Panics
    /// If there is no such part: a bug of the caller.
    fn part<'a>(x: Self::View<'a>, range: Range<usize>) -> Self::View<'a>;

    /// Zeros beside `x`.
    ///
    /// # Errors
    /// If the place has no room.
    fn zeros(x: Self::View<'_>, len: usize) -> Result<Self::Rows>;

    /// The elements before the one at `at`, and the others.
    fn split<'a>(x: Self::ViewMut<'a>, at: usize) -> (Self::ViewMut<'a>, Self::ViewMut<'a>);

    /// A copy.
    ///
    /// # Errors
    /// If the place has no room.
    fn copied(x: Self::View<'_>) -> Result<Self::Rows>;

    /// `to += from`
    ///
    /// # Errors
    /// Errors of the device.
    fn add(to: Self::ViewMut<'_>, from: Self::View<'_>) -> Result<()>;

    /// The rows `rows` of a matrix `x` that is `width` wide.
    ///
    /// # Errors
    /// Errors of the device.
    fn gather(x: Self::View<'_>, width: usize, rows: &[u32]) -> Result<Self::Rows>;

    /// A matrix of `count` rows with the rows of `x` at the indices `rows`, and zero elsewhere.
    /// Rows with the same index are added up or, with [`Write::Set`], written over each other.
    ///
    /// # Errors
    /// Errors of the device.
    fn scatter(x: Self::View<'_>, rows: &[u32], count: usize, write: Write) -> Result<Self::Rows>;

    /// Adds each row of `x` to the row of `to` that `rows` names; both are `width` wide.
    ///
    /// # Errors
    /// Errors of the device.
    fn scatter_add(
        to: Self::ViewMut<'_>,
        x: Self::View<'_>,
        width: usize,
        rows: &[u32],
    ) -> Result<()>;

    /// The elements of an open tensor.
    ///
    /// # Errors
    /// If the tensor is on another device.
    fn of<'a, G: Deref<Target = Storage>>(
        reading: &'a Reading<G>,
        backend: &'a Backend,
    ) -> Result<Self::View<'a>>;

    /// Calls `f` to change the elements of a contiguous `f32` tensor in place; views see the
    /// change.
    ///
    /// # Errors
    /// If the tensor is on another device, of another type, or not contiguous; errors of `f`.
    fn update(
        tensor: &Tensor,
        backend: &Backend,
        f: impl FnOnce(Self::ViewMut<'_>) -> Result<()>,
    ) -> Result<()>;

    /// The rows as the storage of a tensor.
    ///
    /// # Errors
    /// If the device fails.
    fn storage(rows: Self::Rows, device: &Device) -> Result<Storage>;
}

/// Rows that are borrowed or owned.
pub enum MaybeOwned<'a, P: Place> {
    /// Borrowed rows.
    Borrowed(P::View<'a>),
    /// Owned rows.
    Owned(P::Rows),
}

impl<P: Place> MaybeOwned<'_, P> {
    /// Borrows the rows.
    pub fn view(&self) -> P::View<'_> {
        match self {
            Self::Borrowed(view) => P::shorter(*view),
            Self::Owned(rows) => P::view(rows),
        }
    }

    /// The rows by value, copied if they are borrowed.
    ///
    /// # Errors
    /// If the place has no room.
    pub fn into_owned(self) -> Result<P::Rows> {
        match self {
            Self::Borrowed(view) => P::copied(view),
            Self::Owned(rows) => Ok(rows),
        }
    }
}

/// The rows `rows` of `[tokens, width]`, outside every graph.
///
/// # Errors
/// If there is no such row or the device fails.
pub fn select_rows(x: &Tensor, rows: &[u32], backend: &Backend) -> Result<Tensor> {
    fn select<P: Place>(x: &Tensor, rows: &[u32], backend: &Backend) -> Result<Tensor> {
        let width = x.dims2()?.1;
        let some = read::<P, _>(x, backend, |x| P::gather(x, width, rows))?;
        tensor::<P>(some, (rows.len(), width), backend)
    }
    match backend {
        Backend::Host(_) => select::<Host>(x, rows, backend),
        Backend::Gpu(..) => select::<Gpu>(x, rows, backend),
        Backend::Composed(device) => {
            x.index_select(&Tensor::from_slice(rows, rows.len(), device)?, 0)
        }
    }
}

/// An error of the device as candle's, in which a search finds it (see [`DeviceFailure`]). It takes
/// no backtrace, whose layer would hide it.
pub(crate) fn lift<T>(result: kernels::device::Result<T>) -> Result<T> {
    result.map_err(|error| candle_core::Error::Cuda(Box::new(DeviceFailure::new(error))))
}

/// Calls `f` with the elements of a contiguous `f32` tensor.
///
/// # Errors
/// If the tensor is on another device, of another type, or not contiguous; errors of `f`.
pub fn read<P: Place, R>(
    tensor: &Tensor,
    backend: &Backend,
    f: impl FnOnce(P::View<'_>) -> Result<R>,
) -> Result<R> {
    let reading = super::storage::lock(tensor)?;
    f(P::of(&reading, backend)?)
}
