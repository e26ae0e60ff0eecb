//! The list of kernels.

/// A kernel: a function of a source under `cuda/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name of the function.
    pub name: &'static str,
    /// CUDA C++ that defines it, without `device.cuh`.
    pub source: &'static str,
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $function:literal in $file:literal;)*) => {
        impl Kernel {
            $(
                $(#[$doc])*
                pub const $name: Self = Self {
                    name: $function,
                    source: include_str!(concat!("../cuda/", $file)),
                };
            )*

            /// All kernels.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

kernels! {
    /// Normalises groups of columns.
    NORM_FORWARD = "norm_forward" in "norm.cu";
    /// Mean and scale of groups of columns.
    NORM_STATISTICS = "norm_statistics" in "norm.cu";
    /// Gradients of a norm's parameters, summed over chunks of rows.
    NORM_SUMS = "norm_sums" in "norm.cu";
    /// Gradient of a norm's input.
    NORM_BACKWARD = "norm_backward" in "norm.cu";
    /// Rotary position embedding, in place.
    ROPE = "rope" in "rope.cu";
    /// SwiGLU.
    SWIGLU_FORWARD = "swiglu_forward" in "activation.cu";
    /// Gradient of SwiGLU's input.
    SWIGLU_BACKWARD = "swiglu_backward" in "activation.cu";
    /// GELU by tanh.
    GELU_TANH_FORWARD = "gelu_tanh_forward" in "activation.cu";
    /// Gradient of the input of GELU by tanh.
    GELU_TANH_BACKWARD = "gelu_tanh_backward" in "activation.cu";
    /// GELU by the error function.
    GELU_FORWARD = "gelu_forward" in "activation.cu";
    /// Gradient of the input of GELU by the error function.
    GELU_BACKWARD = "gelu_backward" in "activation.cu";
    /// Log-probability and entropy of tokens.
    LOGITS_FORWARD = "logits_forward" in "logits.cu";
    /// Gradient of logits.
    LOGITS_BACKWARD = "logits_backward" in "logits.cu";
    /// Sums of squares of blocks of gradients.
    SUMS_OF_SQUARES = "sums_of_squares" in "optimizer.cu";
    /// A step of AdamW.
    ADAMW = "adamw" in "optimizer.cu";
    /// Adds one vector to another.
    ADD = "add" in "rows.cu";
    /// Adds the rows of a matrix to a vector.
    ADD_ROWS = "add_rows" in "rows.cu";
    /// Copies rows by their indices.
    GATHER_ROWS = "gather_rows" in "rows.cu";
    /// Adds rows to the rows of their indices.
    SCATTER_ADD_ROWS = "scatter_add_rows" in "rows.cu";
}
