//! The two kernels that compute products, and which of them this processor has.
//!
//! Each adds up an element's terms in an order of its own. The generator and the training forward
//! pass must give the same bits, so a model uses one kernel for as long as it is loaded.

#[cfg(target_arch = "x86_64")]
use super::amx;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductKernel {
    /// One chain of fused multiply-adds per element: the same bits on every processor, and the
    /// fastest for few rows.
    Chains,
    /// Tiles of bfloat16 parts on the processor's matrix unit: the fastest for many rows. Without
    /// the unit, AVX-512 instructions emulate it, slowly and with the same bits.
    #[cfg(target_arch = "x86_64")]
    Tiles(TilesUsable),
}

/// What shows that this processor can run tiles: [`ProductKernel`] alone makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilesUsable(());

impl ProductKernel {
    /// The fastest kernel for training on this processor.
    pub fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        if amx::is_usable() {
            return Self::Tiles(TilesUsable(()));
        }
        Self::Chains
    }

    /// All kernels that this processor can run, emulated ones included.
    pub fn available() -> Vec<Self> {
        let mut kernels = vec![Self::Chains];
        #[cfg(target_arch = "x86_64")]
        if amx::can_be_emulated() {
            kernels.push(Self::Tiles(TilesUsable(())));
        }
        kernels
    }

    /// Name of the kernel in messages and in a run's folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains",
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(_) => "tiles",
        }
    }
}
