//! The list of kernels.

/// A kernel: a function of a source under `cuda/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name of the function.
    pub name: &'static str,
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $function:literal;)*) => {
        impl Kernel {
            $(
                $(#[$doc])*
                pub const $name: Self = Self { name: $function };
            )*

            /// All kernels.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

kernels! {
    /// Normalises groups of columns.
    NORM_FORWARD = "norm_forward";
    /// Mean and scale of groups of columns.
    NORM_STATISTICS = "norm_statistics";
    /// Gradients of a norm's parameters, summed over chunks of rows.
    NORM_SUMS = "norm_sums";
    /// Gradient of a norm's input.
    NORM_BACKWARD = "norm_backward";
    /// Rotary position embedding, in place.
    ROPE = "rope";
    /// Products of the rows of a gradient with those of attention's result.
    ATTENTION_ALONG = "attention_along";
    /// Packed attention of heads of up to 32 columns.
    ATTENTION_FORWARD_32 = "attention_forward_32";
    /// Gradients of keys and values in packed attention, heads of up to 32 columns.
    ATTENTION_BACKWARD_KEYS_32 = "attention_backward_keys_32";
    /// Gradients of queries in packed attention, heads of up to 32 columns.
    ATTENTION_BACKWARD_QUERIES_32 = "attention_backward_queries_32";
    /// Packed attention of heads of up to 64 columns.
    ATTENTION_FORWARD_64 = "attention_forward_64";
    /// Gradients of keys and values in packed attention, heads of up to 64 columns.
    ATTENTION_BACKWARD_KEYS_64 = "attention_backward_keys_64";
    /// Gradients of queries in packed attention, heads of up to 64 columns.
    ATTENTION_BACKWARD_QUERIES_64 = "attention_backward_queries_64";
    /// Packed attention of heads of up to 128 columns.
    ATTENTION_FORWARD_128 = "attention_forward_128";
    /// Gradients of keys and values in packed attention, heads of up to 128 columns.
    ATTENTION_BACKWARD_KEYS_128 = "attention_backward_keys_128";
    /// Gradients of queries in packed attention, heads of up to 128 columns.
    ATTENTION_BACKWARD_QUERIES_128 = "attention_backward_queries_128";
    /// Packed attention of heads of up to 256 columns.
    ATTENTION_FORWARD_256 = "attention_forward_256";
    /// Gradients of keys and values in packed attention, heads of up to 256 columns.
    ATTENTION_BACKWARD_KEYS_256 = "attention_backward_keys_256";
    /// Gradients of queries in packed attention, heads of up to 256 columns.
    ATTENTION_BACKWARD_QUERIES_256 = "attention_backward_queries_256";
    /// Attention over a cache in single precision, 4 rows at a time.
    ATTENTION_PAGED_4 = "attention_paged_4";
    /// Attention over a cache in bfloat16, 4 rows at a time.
    ATTENTION_PAGED_BFLOAT16_4 = "attention_paged_bfloat16_4";
    /// Attention over a cache in single precision, 8 rows at a time.
    ATTENTION_PAGED_8 = "attention_paged_8";
    /// Attention over a cache in bfloat16, 8 rows at a time.
    ATTENTION_PAGED_BFLOAT16_8 = "attention_paged_bfloat16_8";
    /// Attention over a cache in single precision, 16 rows at a time.
    ATTENTION_PAGED_16 = "attention_paged_16";
    /// Attention over a cache in bfloat16, 16 rows at a time.
    ATTENTION_PAGED_BFLOAT16_16 = "attention_paged_bfloat16_16";
    /// Joins the splits of attention over a cache.
    ATTENTION_PAGED_JOIN = "attention_paged_join";
    /// Writes keys and values to a cache in single precision.
    ATTENTION_PAGED_WRITE = "attention_paged_write";
    /// Writes keys and values to a cache in bfloat16.
    ATTENTION_PAGED_WRITE_BFLOAT16 = "attention_paged_write_bfloat16";
    /// Copies blocks of a cache.
    ATTENTION_PAGED_COPY = "attention_paged_copy";
    /// Products of the rows of a gradient in bfloat16 with those of attention's result.
    ATTENTION_ALONG_BFLOAT16 = "attention_along_bfloat16";
    /// Packed attention on tensor cores, heads of up to 64 columns.
    ATTENTION_TENSOR_FORWARD_64 = "attention_tensor_forward_64";
    /// Gradients of keys and values on tensor cores, heads of up to 64 columns.
    ATTENTION_TENSOR_BACKWARD_KEYS_64 = "attention_tensor_backward_keys_64";
    /// Gradients of queries on tensor cores, heads of up to 64 columns.
    ATTENTION_TENSOR_BACKWARD_QUERIES_64 = "attention_tensor_backward_queries_64";
    /// Packed attention on tensor cores, heads of up to 128 columns.
    ATTENTION_TENSOR_FORWARD_128 = "attention_tensor_forward_128";
    /// Gradients of keys and values on tensor cores, heads of up to 128 columns.
    ATTENTION_TENSOR_BACKWARD_KEYS_128 = "attention_tensor_backward_keys_128";
    /// Gradients of queries on tensor cores, heads of up to 128 columns.
    ATTENTION_TENSOR_BACKWARD_QUERIES_128 = "attention_tensor_backward_queries_128";
    /// SwiGLU.
    SWIGLU_FORWARD = "swiglu_forward";
    /// Gradient of SwiGLU's input.
    SWIGLU_BACKWARD = "swiglu_backward";
    /// GELU by tanh.
    GELU_TANH_FORWARD = "gelu_tanh_forward";
    /// Gradient of the input of GELU by tanh.
    GELU_TANH_BACKWARD = "gelu_tanh_backward";
    /// GELU by the error function.
    GELU_FORWARD = "gelu_forward";
    /// Gradient of the input of GELU by the error function.
    GELU_BACKWARD = "gelu_backward";
    /// Log-probability and entropy of tokens.
    LOGITS_FORWARD = "logits_forward";
    /// Gradient of logits.
    LOGITS_BACKWARD = "logits_backward";
    /// The largest logits of the parts of rows.
    SAMPLE_EXTREMES = "sample_extremes";
    /// Sums over blocks of rows, or of kept sets.
    SAMPLE_SUMS = "sample_sums";
    /// Where top-k and top-p cut rows.
    SAMPLE_CUT = "sample_cut";
    /// The kept tokens of rows, as bits.
    SAMPLE_KEEP = "sample_keep";
    /// The kept tokens of rows, as ids.
    SAMPLE_LIST = "sample_list";
    /// Draws the tokens of rows.
    SAMPLE_DRAW = "sample_draw";
    /// Adds drawn tokens to their sequences.
    SAMPLE_ADVANCE = "sample_advance";
    /// Sums of squares of blocks of gradients.
    SUMS_OF_SQUARES = "sums_of_squares";
    /// A step of AdamW.
    ADAMW = "adamw";
    /// Rounds numbers to bfloat16.
    TO_BFLOAT16 = "to_bfloat16";
    /// Adds one vector to another.
    ADD = "add";
    /// Multiplies a vector by a number.
    SCALE = "scale";
    /// Adds a vector to each row of a matrix.
    ADD_BIAS = "add_bias";
    /// Sums the columns of chunks of rows.
    SUM_ROWS = "sum_rows";
    /// Adds the rows of a matrix to a vector.
    ADD_ROWS = "add_rows";
    /// Copies rows by their indices.
    GATHER_ROWS = "gather_rows";
    /// Adds rows to the rows of their indices, or replaces these.
    SCATTER_ADD_ROWS = "scatter_add_rows";
}
