//! Products of row-major matrices.
//!
//! A product of `f32` matrices in full precision is, on the emulated device, one chain of fused
//! multiply-adds per element in ascending order, as on the host. On a GPU the library that computes
//! it chooses the order, by the sizes alone.

pub use crate::arguments::{Precision, Receive};
use crate::device::array::{Number, Slice, SliceMut};
use crate::device::error::{KernelError, Result};
use crate::device::launcher::{Factor, FactorType, Gemm};

/// Elements of matrices that are multiplied: `f32`, or the bits of bfloat16.
pub trait FactorNumber: Number {
    /// The type as the device knows it.
    const TYPE: FactorType;
}

impl FactorNumber for f32 {
    const TYPE: FactorType = FactorType::F32;
}

impl FactorNumber for u16 {
    const TYPE: FactorType = FactorType::Bf16;
}

/// A matrix that is a factor of a product. Its rows may be further apart than they are long.
#[derive(Clone, Copy)]
pub struct DeviceMatrix<'a, T> {
    data: Slice<'a, T>,
    rows: usize,
    columns: usize,
    stride: usize,
    transposed: bool,
}

/// A matrix that receives a product.
pub struct DeviceMatrixMut<'a> {
    data: SliceMut<'a, f32>,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Checks that rows of `columns` elements, `stride` apart, fit into `len` elements.
fn check(len: usize, rows: usize, columns: usize, stride: usize) -> Result<()> {
    let needed = match rows {
        0 => 0,
        rows => (rows - 1) * stride + columns,
    };
    match columns <= stride && needed <= len {
        true => Ok(()),
        false => Err(KernelError::Length {
            what: "a matrix",
            found: len,
            expected: needed.max(columns),
        }),
    }
}

impl<'a, T: FactorNumber> DeviceMatrix<'a, T> {
    /// `rows` rows of `columns` elements; each begins `stride` elements after the one before.
    ///
    /// # Errors
    /// If `data` has too few elements.
    pub fn new(data: Slice<'a, T>, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        check(data.len(), rows, columns, stride)?;
        Ok(Self {
            data,
            rows,
            columns,
            stride,
            transposed: false,
        })
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }

    fn factor(&self) -> Factor {
        Factor {
            pointer: self.data.pointer(),
            stride: self.stride,
            transposed: self.transposed,
        }
    }
}

impl<'a> DeviceMatrixMut<'a> {
    /// `rows` rows of `columns` elements; each begins `stride` elements after the one before.
    ///
    /// # Errors
    /// If `data` has too few elements.
    pub fn new(
        data: SliceMut<'a, f32>,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Result<Self> {
        check(data.len(), rows, columns, stride)?;
        Ok(Self {
            data,
            rows,
            columns,
            stride,
        })
    }

    /// Receives the product `a · b`.
    ///
    /// # Errors
    /// If the sizes or devices disagree, and errors of the device.
    pub fn receive<T: FactorNumber>(
        &mut self,
        a: DeviceMatrix<T>,
        b: DeviceMatrix<T>,
        receive: Receive,
        precision: Precision,
    ) -> Result<()> {
        let sizes = [
            (a.columns, b.rows),
            (a.rows, self.rows),
            (b.columns, self.columns),
        ];
        if let Some((found, expected)) = sizes.into_iter().find(|(x, y)| x != y) {
            return Err(KernelError::Length {
                what: "the side of a factor",
                found,
                expected,
            });
        }
        let gpu = self.data.gpu();
        if ![a.data.gpu(), b.data.gpu()]
            .iter()
            .all(|own| own.is_same(gpu))
        {
            return Err(KernelError::Devices { what: "a product" });
        }
        if self.rows == 0 || self.columns == 0 {
            return Ok(());
        }
        let gemm = Gemm {
            sizes: [a.rows, b.columns, a.columns],
            factors: [a.factor(), b.factor()],
            result: (self.data.as_slice().pointer(), self.stride),
            number: T::TYPE,
            receive,
            precision,
        };
        // SAFETY: each matrix has as many elements as its sizes and stride say.
        unsafe { gpu.launcher.gemm(&gemm) }
    }
}
