//! Simple operations on vectors and on the rows of matrices. All but [`add_column_sums`] have the
//! host's bits.

use crate::arguments::Receive;
use crate::device::array::{Array, Gpu, Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

/// Rows whose columns are summed together, as in `sum_rows`.
const ROWS_PER_SUM: usize = 64;

/// `to += from`
///
/// # Errors
/// If the lengths differ, and errors of the device.
pub fn add(mut to: SliceMut<f32>, from: Slice<f32>) -> Result<()> {
    from.check("the summand", to.len())?;
    let len = to.len();
    let call = Call::new(to.gpu(), Kernel::ADD)
        .write(&mut to)
        .read(from)
        .with(len);
    // SAFETY: both arrays have `len` elements.
    unsafe { call.run(Grid::over(len as u64)) }
}

/// `x *= factor`
///
/// # Errors
/// Errors of the device.
pub fn scale(mut x: SliceMut<f32>, factor: f32) -> Result<()> {
    let len = x.len();
    let call = Call::new(x.gpu(), Kernel::SCALE)
        .write(&mut x)
        .with(len)
        .with(factor);
    // SAFETY: the array has `len` elements.
    unsafe { call.run(Grid::over(len as u64)) }
}

/// The bits of the numbers rounded to bfloat16, to nearest even.
///
/// # Errors
/// If the device has too little memory, and errors of the device.
pub fn to_bfloat16(from: Slice<f32>) -> Result<Array<u16>> {
    let mut to = from.gpu().array(from.len())?;
    let call = Call::new(from.gpu(), Kernel::TO_BFLOAT16)
        .write(&mut to.slice_mut())
        .read(from)
        .with(from.len());
    // SAFETY: both arrays have as many elements.
    unsafe { call.run(Grid::over(from.len() as u64))? };
    Ok(to)
}

/// Adds `bias` to the columns of each of the `rows` rows of `y` from `column` on.
///
/// # Errors
/// If the columns lie outside of the rows, and errors of the device.
pub fn add_bias(mut y: SliceMut<f32>, bias: Slice<f32>, rows: usize, column: usize) -> Result<()> {
    let (width, stride) = (bias.len(), y.len() / rows.max(1));
    y.as_slice().check("the rows of a bias", rows * stride)?;
    y.as_slice()
        .check_least("the columns of a bias", rows * (column + width))?;
    if rows == 0 {
        return Ok(());
    }
    let len = y.len();
    let mut columns = y.reborrow().part(column..len);
    let call = Call::new(bias.gpu(), Kernel::ADD_BIAS)
        .write(&mut columns)
        .read(bias)
        .with(rows)
        .with(width)
        .with(stride);
    // SAFETY: each row has `width` columns from `column` on.
    unsafe { call.run(Grid::over(rows as u64 * width as u64)) }
}

/// Adds the sums of the columns of `from` from `column` on to `to`. The `rows` rows are summed in
/// chunks of 64, and these sums in ascending order.
///
/// # Errors
/// If the columns lie outside of the rows, and errors of the device.
pub fn add_column_sums(
    to: SliceMut<f32>,
    from: Slice<f32>,
    rows: usize,
    column: usize,
) -> Result<()> {
    let (width, stride) = (to.len(), from.len() / rows.max(1));
    from.check("the rows that are summed", rows * stride)?;
    from.check_least("the columns that are summed", rows * (column + width))?;
    if rows == 0 {
        return Ok(());
    }
    let chunks = rows.div_ceil(ROWS_PER_SUM);
    let mut sums = from.gpu().array(chunks * width)?;
    let call = Call::new(from.gpu(), Kernel::SUM_ROWS)
        .write(&mut sums.slice_mut())
        .read(from.part(column..from.len()))
        .with(rows)
        .with(width)
        .with(stride);
    let mut grid = Grid::over(width as u64);
    grid.blocks[1] = chunks as u32;
    // SAFETY: each row has `width` columns from `column` on, and `sums` a row for each chunk.
    unsafe { call.run(grid)? };
    add_rows(to, sums.slice(), chunks)
}

/// Adds the `rows` rows of `from` to `to` in ascending order.
///
/// # Errors
/// If `from` does not hold as many rows of the length of `to`, and errors of the device.
pub fn add_rows(mut to: SliceMut<f32>, from: Slice<f32>, rows: usize) -> Result<()> {
    from.check("the rows that are added", rows * to.len())?;
    let width = to.len();
    let call = Call::new(to.gpu(), Kernel::ADD_ROWS)
        .write(&mut to)
        .read(from)
        .with(rows)
        .with(width);
    // SAFETY: `from` holds `rows` rows of the length of `to`.
    unsafe { call.run(Grid::over(width as u64)) }
}

/// Indices of rows of a table, for [`gather`] and [`scatter`].
pub struct RowIndices {
    /// Rows of the table.
    rows: usize,
    ids: Array<u32>,
    /// The distinct ids in ascending order.
    distinct: Array<u32>,
    /// First place in `order` of each distinct id, and the end.
    starts: Array<u32>,
    /// Places of the ids, sorted by id.
    order: Array<u32>,
}

impl RowIndices {
    /// Indices of rows of a table of `rows` rows.
    ///
    /// # Panics
    /// If an id is not below `rows`.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn new(gpu: &Gpu, ids: &[u32], rows: usize) -> Result<Self> {
        assert!(ids.iter().all(|&id| (id as usize) < rows), "ids of rows");
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&place| ids[place as usize]);
        let groups = order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]);
        let distinct: Vec<u32> = groups.clone().map(|group| ids[group[0] as usize]).collect();
        let ends = groups.scan(0, |end, group| {
            *end += group.len() as u32;
            Some(*end)
        });
        let starts: Vec<u32> = std::iter::once(0).chain(ends).collect();
        Ok(Self {
            rows,
            ids: gpu.upload(ids)?,
            distinct: gpu.upload(&distinct)?,
            starts: gpu.upload(&starts)?,
            order: gpu.upload(&order)?,
        })
    }
}

/// The rows of `table`, `[rows, width]`, at these indices: `[ids, width]`.
///
/// # Errors
/// If the table's length is not a multiple of its rows, and errors of the device.
pub fn gather(table: Slice<f32>, ids: &RowIndices) -> Result<Array<f32>> {
    let width = table.len() / ids.rows.max(1);
    table.check("the table", ids.rows * width)?;
    let mut to = table.gpu().array(ids.ids.len() * width)?;
    let call = Call::new(table.gpu(), Kernel::GATHER_ROWS)
        .write(&mut to.slice_mut())
        .read(table)
        .read(ids.ids.slice())
        .with(ids.ids.len())
        .with(width);
    let grid = Grid::over(to.len() as u64);
    // SAFETY: `to` has a row for each id, and ids were checked against the table's rows.
    unsafe { call.run(grid)? };
    Ok(to)
}

/// Adds the rows of `from`, `[ids, width]`, to the rows of `table` at these indices, rows of one
/// index in ascending order. With [`Receive::Set`], the last of them replaces the row.
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn scatter(
    mut table: SliceMut<f32>,
    from: Slice<f32>,
    ids: &RowIndices,
    receive: Receive,
) -> Result<()> {
    let width = table.len() / ids.rows.max(1);
    table.as_slice().check("the table", ids.rows * width)?;
    from.check("the rows that are added", ids.ids.len() * width)?;
    let segments = ids.distinct.len();
    let call = Call::new(table.gpu(), Kernel::SCATTER_ADD_ROWS)
        .write(&mut table)
        .read(from)
        .read(ids.distinct.slice())
        .read(ids.starts.slice())
        .read(ids.order.slice())
        .with(segments)
        .with(width)
        .with(u32::from(receive == Receive::Set));
    // SAFETY: as in `gather`; each segment's places are places of `from`.
    unsafe { call.run(Grid::over(segments as u64 * width as u64)) }
}
