//! Element-wise kernels of merganser: conversions, reductions, selection and masks, with the same bits on every machine.
//!
//! Everything here is a pure function on slices: no files, no threads, no knowledge of merge methods. Three rules give
//! the promise of equal bits:
//!
//! 1. One plain Rust loop per kernel, compiled once per instruction set ([`simd`]); no intrinsic, no fused
//!    multiply-add, no re-associated sum. Where a sum needs lanes, the lanes and their folding tree are fixed ([`reduce`]).
//! 2. The payload and the sign of a NaN are the only bits on which IEEE 754 machines may differ, so every NaN is made
//!    canonical where it would become visible: when it is encoded ([`convert`]) or turned into a key ([`keys`]).
//! 3. Random numbers are a function of (seed, tensor, model, element index), not of a generator's history ([`mask`]);
//!    what is drawn in order, one number after the other, is a function of (seed, stream) ([`random`]).
//!
//! Kernels take slices of equal length and panic when the lengths differ: lengths come from the caller's own buffers,
//! never from a file or a user.

#![deny(unsafe_code)]
// A lazy `&&` is a branch, and a branch on data can keep a loop from vectorising.
#![allow(clippy::needless_bitwise_bool)]

#[macro_use]
pub mod simd;

pub mod angle;
pub mod compete;
pub mod convert;
pub mod elect;
pub mod elementwise;
pub mod keys;
pub mod mask;
pub mod order;
pub mod planes;
pub mod precision;
pub mod random;
pub mod ranked;
pub mod reduce;
pub mod sparse;
pub mod special;
pub mod swap;

#[cfg(test)]
mod testing;
