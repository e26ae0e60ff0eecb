//! Sixteen `f32` side by side, in the widest registers that the processor has.
//!
//! A kernel is written once over `Lanes` and compiled for each implementation. All give the same
//! bits, because a lane's multiply-add is fused everywhere.

/// Elements of a `Lanes`, outputs of a panel.
pub const LANES: usize = 16;

/// Sixteen numbers in one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Line(pub [f32; LANES]);

/// Sixteen `f32` in registers.
///
/// # Safety
/// [`level`] must have found the instructions that the methods use, and pointers must be valid for
/// [`LANES`] elements.
pub trait Lanes: Copy {
    /// Rows of the register tile, which with [`Self::PANELS`] panels fills the register file.
    const ROWS: usize;
    /// Panels of the register tile.
    const PANELS: usize;
    /// Packed rows side by side: those of a tile if they fill half a line.
    const GROUP: usize;

    /// Sixteen zeros.
    unsafe fn zero() -> Self;
    /// Loads sixteen consecutive elements.
    unsafe fn load(from: *const f32) -> Self;
    /// One element sixteen times.
    unsafe fn splat(from: *const f32) -> Self;
    /// Stores sixteen consecutive elements.
    unsafe fn store(self, to: *mut f32);
    /// Stores the first eight elements at `first`, the others at `last`.
    unsafe fn store_halves(self, first: *mut f32, last: *mut f32);
    /// `self · b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self · b`
    unsafe fn mul(self, b: Self) -> Self;
    /// Prefetches the line at `from`, which may be any address, into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}
    /// Prefetches the line at `from`, which may be any address, into the first-level cache.
    #[inline(always)]
    unsafe fn prefetch_near(_from: *const f32) {}
    /// `a₀ b₀ a₁ b₁ …`: the first eight pairs, then the last eight.
    unsafe fn interleave(self, b: Self) -> [Self; 2];
}

/// The widest instructions that a kernel may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Instructions that every processor of the architecture has.
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The level of this processor.
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Plain
}

/// Defines an unsafe function that runs a generic one with the widest lanes of this processor.
///
/// The generic function and all functions that it calls must be `#[inline(always)]`, or each
/// instruction becomes a call.
macro_rules! on_widest {
    (
        $(#[$meta:meta])*
        $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $generic:ident;
    ) => {
        $(#[$meta])*
        $vis unsafe fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: the caller keeps this function's contract.
                unsafe { $generic::<$crate::host::product::lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: the caller keeps this function's contract.
                unsafe { $generic::<$crate::host::product::lanes::Avx2>($($arg),*) }
            }
            use $crate::host::product::lanes::{Level, Plain, level};
            // SAFETY: the level says that the instructions exist; the rest is the caller's.
            unsafe {
                match level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2($($arg),*),
                    Level::Plain => $generic::<Plain>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use on_widest;

/// An array that the compiler vectorises as far as it can; with NEON it does.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Lanes for Plain {
    const ROWS: usize = 4;
    const PANELS: usize = 1;
    const GROUP: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for an element.
        Self([unsafe { *from }; LANES])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, first: *mut f32, last: *mut f32) {
        let [low, high] = [0, LANES / 2].map(|from| std::array::from_fn(|i| self.0[from + i]));
        // SAFETY: the caller's pointers are valid for eight elements.
        unsafe {
            first.cast::<[f32; LANES / 2]>().write_unaligned(low);
            last.cast::<[f32; LANES / 2]>().write_unaligned(high);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn interleave(self, b: Self) -> [Self; 2] {
        let pick = |i: usize| {
            if i.is_multiple_of(2) {
                self.0[i / 2]
            } else {
                b.0[i / 2]
            }
        };
        [0, LANES].map(|from| Self(std::array::from_fn(|i| pick(from + i))))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm256_castpd_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm512_add_epi32,
        _mm512_castps_pd, _mm512_castps512_ps256, _mm512_extractf64x4_pd, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_mul_ps, _mm512_permutex2var_ps, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_setr_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{LANES, Lanes};

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub __m512);

    // SAFETY (all methods): the caller keeps the trait's contract: the instructions exist, and
    // pointers are valid.
    impl Lanes for Avx512 {
        const ROWS: usize = 8;
        const PANELS: usize = 3;
        const GROUP: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            Self(unsafe { _mm512_set1_ps(*from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn store_halves(self, first: *mut f32, last: *mut f32) {
            unsafe {
                _mm256_storeu_ps(first, _mm512_castps512_ps256(self.0));
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
                _mm256_storeu_ps(last, _mm256_castpd_ps(high));
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn prefetch_near(from: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn interleave(self, b: Self) -> [Self; 2] {
            // Indices of sixteen and above name the second operand's elements.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
                [low, high].map(|index| Self(_mm512_permutex2var_ps(self.0, index, b.0)))
            }
        }
    }

    /// Two registers of AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY (all methods): the caller keeps the trait's contract: the instructions exist, and
    // pointers are valid.
    impl Lanes for Avx2 {
        const ROWS: usize = 6;
        const PANELS: usize = 1;
        const GROUP: usize = LANES;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            let all = unsafe { _mm256_set1_ps(*from) };
            Self(all, all)
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn store_halves(self, first: *mut f32, last: *mut f32) {
            unsafe {
                _mm256_storeu_ps(first, self.0);
                _mm256_storeu_ps(last, self.1);
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, b.0, c.0),
                    _mm256_fmadd_ps(self.1, b.1, c.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn interleave(self, b: Self) -> [Self; 2] {
            // Unpacking works within halves of a register: put those back in order.
            let pairs = |a, b| unsafe {
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                Self(
                    _mm256_permute2f128_ps::<0x20>(low, high),
                    _mm256_permute2f128_ps::<0x31>(low, high),
                )
            };
            [pairs(self.0, b.0), pairs(self.1, b.1)]
        }
    }
}
