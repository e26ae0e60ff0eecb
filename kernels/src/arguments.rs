//! Plain arguments that the functions of both places take.

/// The groups of columns that a norm normalises, and the rows that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: u32,
    /// First column of the first group.
    pub first: u32,
    /// Groups of a row.
    pub count: u32,
    /// Columns of a group.
    pub width: u32,
}

/// A form of GELU (Hendrycks and Gimpel 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// By the error function. Devices round it differently, in the last digits.
    Exact,
    /// The approximation by tanh, with the same bits everywhere.
    Tanh,
}

/// The direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angles: the forward pass.
    Forward,
    /// By the opposite angles: the backward pass.
    Backward,
}

/// The results of a token whose log-probability is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Log-probability and entropy within the token's distribution.
    Own,
    /// These, and the log-probability in the whole vocabulary.
    OwnAndWhole,
}

impl Columns {
    /// Number of results of a token.
    pub fn count(self) -> usize {
        match self {
            Self::Own => 2,
            Self::OwnAndWhole => 3,
        }
    }
}

/// The factors of one step of AdamW (Loshchilov and Hutter 2019, algorithm 2) for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Factor of the gradient by which the global norm is clipped.
    pub clip: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// lr / (1 − β₁ᵗ)
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ)
    pub root: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// 1 − lr · decay
    pub keep: f32,
}

/// Whether a product overwrites the matrix that receives it, or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Receive {
    /// Overwrites it.
    Set,
    /// Adds to it; the sums start from its values.
    Add,
}

/// Precision in which factors of type `f32` are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision, without rounding of the factors.
    Full,
    /// TF32: factors rounded to 10 bits of mantissa, on tensor cores.
    Tf32,
}
