//! How a right-hand side is packed: panels of sixteen columns, in one of two layouts.

use super::kernel::ProductKernel;
use super::lanes::Line;
use super::matrix::Matrix;
use super::pack::pack;
#[cfg(target_arch = "x86_64")]
use super::parts;

/// Layout of packed panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelLayout {
    /// A line per input, for chains.
    Lines,
    /// Three bfloat16 parts per number, for the matrix unit: half as large again. Splitting lines
    /// during a product takes longer than reading the larger parts, even from memory.
    #[cfg(target_arch = "x86_64")]
    Parts,
}

impl PanelLayout {
    /// The layout that `kernel` reads.
    pub fn of(kernel: ProductKernel) -> Self {
        match kernel {
            ProductKernel::Chains => Self::Lines,
            #[cfg(target_arch = "x86_64")]
            ProductKernel::Tiles(_) => Self::Parts,
        }
    }

    /// Lines of a panel with this many inputs. Where the panel can be cut after `inputs`, these are
    /// also the lines before the cut.
    pub fn lines(self, inputs: usize) -> usize {
        match self {
            Self::Lines => inputs,
            #[cfg(target_arch = "x86_64")]
            Self::Parts => parts::lines(inputs),
        }
    }

    /// Whether a panel can be cut after this many inputs: what follows is packed as if it began
    /// there.
    pub fn can_be_cut(self, inputs: usize) -> bool {
        self.lines(inputs) + self.lines(1) == self.lines(inputs + 1)
    }

    /// Packs rows of `matrix` from `first` on, each a column of the right-hand side; rows past the
    /// matrix's end are zero.
    pub fn pack(self, matrix: Matrix, first: usize, panels: &mut [Line]) {
        match self {
            Self::Lines => pack(matrix, first, 0..matrix.width(), panels),
            // SAFETY: the layout belongs to a kernel that this processor can run, so it has
            // AVX-512.
            #[cfg(target_arch = "x86_64")]
            Self::Parts => unsafe {
                parts::split_panels(matrix, first, 0..matrix.width(), panels);
            },
        }
    }
}
