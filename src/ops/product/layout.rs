//! How a right-hand side is packed: panels of sixteen columns, in one of two layouts.

use super::arithmetic::Arithmetic;
use super::lanes::Line;
use super::matrix::Matrix;
use super::pack::pack;
#[cfg(target_arch = "x86_64")]
use super::tiles;

/// The layout of panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A line an input, for chains.
    Lines,
    /// For the matrix unit; half as large again. Splitting lines on the way takes longer than reading more, from memory too.
    #[cfg(target_arch = "x86_64")]
    Parts,
}

impl Layout {
    /// The one that this thread's products read.
    pub fn native() -> Self {
        match Arithmetic::current() {
            Arithmetic::Chains => Self::Lines,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Tiles => Self::Parts,
        }
    }

    /// Lines of a panel of so many inputs, and of those before input number `inputs` if a panel can be cut there.
    pub fn lines(self, inputs: usize) -> usize {
        match self {
            Self::Lines => inputs,
            #[cfg(target_arch = "x86_64")]
            Self::Parts => tiles::lines(inputs),
        }
    }

    /// Whether what follows after so many inputs is packed as if it began there.
    pub fn can_be_cut(self, inputs: usize) -> bool {
        self.lines(inputs) + self.lines(1) == self.lines(inputs + 1)
    }

    /// Packs rows of `matrix` from `first` on, each a column of the right-hand side; those past the matrix's end are zero.
    pub fn pack(self, matrix: Matrix, first: usize, panels: &mut [Line]) {
        match self {
            Self::Lines => pack(matrix, first, 0..matrix.width(), panels),
            // SAFETY: the layout is that of an arithmetic, which this processor has.
            #[cfg(target_arch = "x86_64")]
            Self::Parts => unsafe {
                tiles::split_panels(matrix, first, 0..matrix.width(), panels);
            },
        }
    }
}
