//! The kernels of packed attention for each element type and width of a head.

use super::ALIGNMENT;
use crate::attention::Attention;
use crate::device::array::Number;
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;

/// Element types of packed rows: `f32`, or `u16` for the bits of bfloat16, which tensor cores
/// multiply.
pub trait PackedNumber: Number {
    /// The kernels for these rows.
    #[doc(hidden)]
    const KERNELS: PackedKernels;
}

/// The kernels for an element type.
pub struct PackedKernels {
    /// Name of the type.
    number: &'static str,
    /// Products of the rows of a gradient with those of the result.
    pub along: Kernel,
    /// A head's columns are a multiple of this.
    multiple: usize,
    /// Narrow heads first.
    variants: &'static [Variant],
}

/// The kernels for heads of up to `columns` columns.
pub struct Variant {
    /// Columns to which a head is padded with zeros.
    columns: usize,
    /// Rows of a block's tile.
    pub tile: usize,
    /// The forward pass.
    pub forward: Part,
    /// The gradients of keys and values.
    pub keys: Part,
    /// The gradients of queries.
    pub queries: Part,
}

/// A kernel, and the bytes of shared memory that its blocks need.
pub struct Part {
    /// The kernel.
    pub kernel: Kernel,
    /// Bytes of shared memory.
    pub shared_bytes: usize,
}

impl Part {
    const fn new(kernel: Kernel, shared_bytes: usize) -> Self {
        Self {
            kernel,
            shared_bytes,
        }
    }
}

impl PackedKernels {
    /// The narrowest variant for a layer.
    ///
    /// # Errors
    /// Heads without a kernel.
    pub fn variant(&self, spec: &Attention) -> Result<&'static Variant> {
        let width = spec.head_dim;
        let mut variants = self.variants.iter();
        let found = variants.find(|v| v.columns >= width && width.is_multiple_of(self.multiple));
        found.ok_or_else(|| KernelError::Shape {
            message: format!(
                "attention heads have {width} columns, and the device's kernels in {} support \
                 multiples of {} up to {}",
                self.number,
                self.multiple,
                self.variants.last().map_or(0, |variant| variant.columns)
            ),
        })
    }
}

impl PackedNumber for f32 {
    const KERNELS: PackedKernels = PackedKernels {
        number: "float32",
        along: Kernel::ATTENTION_ALONG,
        multiple: 4,
        variants: &[
            single(32, 64, 32, SINGLE_32),
            single(64, 64, 32, SINGLE_64),
            single(128, 32, 32, SINGLE_128),
            single(256, 16, 16, SINGLE_256),
        ],
    };
}

impl PackedNumber for u16 {
    const KERNELS: PackedKernels = PackedKernels {
        number: "bfloat16",
        along: Kernel::ATTENTION_ALONG_BFLOAT16,
        multiple: 8,
        variants: &[
            tensor(64, 64, 64, TENSOR_64),
            tensor(128, 64, 32, TENSOR_128),
        ],
    };
}

const SINGLE_32: [Kernel; 3] = [
    Kernel::ATTENTION_FORWARD_32,
    Kernel::ATTENTION_BACKWARD_KEYS_32,
    Kernel::ATTENTION_BACKWARD_QUERIES_32,
];
const SINGLE_64: [Kernel; 3] = [
    Kernel::ATTENTION_FORWARD_64,
    Kernel::ATTENTION_BACKWARD_KEYS_64,
    Kernel::ATTENTION_BACKWARD_QUERIES_64,
];
const SINGLE_128: [Kernel; 3] = [
    Kernel::ATTENTION_FORWARD_128,
    Kernel::ATTENTION_BACKWARD_KEYS_128,
    Kernel::ATTENTION_BACKWARD_QUERIES_128,
];
const SINGLE_256: [Kernel; 3] = [
    Kernel::ATTENTION_FORWARD_256,
    Kernel::ATTENTION_BACKWARD_KEYS_256,
    Kernel::ATTENTION_BACKWARD_QUERIES_256,
];
const TENSOR_64: [Kernel; 3] = [
    Kernel::ATTENTION_TENSOR_FORWARD_64,
    Kernel::ATTENTION_TENSOR_BACKWARD_KEYS_64,
    Kernel::ATTENTION_TENSOR_BACKWARD_QUERIES_64,
];
const TENSOR_128: [Kernel; 3] = [
    Kernel::ATTENTION_TENSOR_FORWARD_128,
    Kernel::ATTENTION_TENSOR_BACKWARD_KEYS_128,
    Kernel::ATTENTION_TENSOR_BACKWARD_QUERIES_128,
];

/// The sizes of `ATTENTION_KERNELS` in `attention.cu`. Shared memory holds the block's tile (two in
/// the backward pass), two tiles of `others` rows, and a weight for each pair of rows.
const fn single(columns: usize, tile: usize, others: usize, kernels: [Kernel; 3]) -> Variant {
    let row = (columns + 4) * size_of::<f32>();
    let weights = tile * (others + 4) * size_of::<f32>();
    let forward = (tile + 2 * others) * row + weights;
    variant(columns, tile, kernels, [forward, forward + tile * row])
}

/// The sizes of `TENSOR_KERNELS` in `attention_tensor.cu`. Shared memory holds the block's tile and
/// two of 64 other rows in the forward pass, and twice as many tiles, of which four have `others`
/// rows, in the backward pass.
const fn tensor(columns: usize, tile: usize, others: usize, kernels: [Kernel; 3]) -> Variant {
    let row = (columns + ALIGNMENT as usize / size_of::<u16>()) * size_of::<u16>();
    let bytes = [(tile + 2 * 64) * row, (2 * tile + 4 * others) * row];
    variant(columns, tile, kernels, bytes)
}

/// A variant with these bytes of shared memory in the forward and the backward pass.
const fn variant(
    columns: usize,
    tile: usize,
    [forward, keys, queries]: [Kernel; 3],
    [forward_bytes, backward_bytes]: [usize; 2],
) -> Variant {
    Variant {
        columns,
        tile,
        forward: Part::new(forward, forward_bytes),
        keys: Part::new(keys, backward_bytes),
        queries: Part::new(queries, backward_bytes),
    }
}
