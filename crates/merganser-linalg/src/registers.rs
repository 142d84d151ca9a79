//! What faer's kernels leave behind in the vector registers.
//!
//! Its products (private-gemm-x86 0.1.22) return with the upper halves of AVX registers in use. Until these are cleared, every SSE
//! instruction on the same thread must keep them, and so waits for the one before it: loops in plain Rust were measured to run three
//! to four times slower after a product.

/// Clears the upper halves; a nanosecond. To be called after every call of faer.
#[inline]
pub(crate) fn clear() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the instruction is part of AVX, which was just found. No compiled code expects a value in an upper half across
        // a call of a function that may use all registers.
        #[allow(unsafe_code)]
        unsafe {
            zero_upper();
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn zero_upper() {
    std::arch::x86_64::_mm256_zeroupper();
}
