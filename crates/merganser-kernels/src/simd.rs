//! Which instruction set the kernels run on, and the macro that compiles one loop for each of them.
//!
//! A kernel is written once, as a plain loop. The crate-private `kernel!` macro compiles its body under the target
//! features of every [`Level`] and calls the instance of the level in force. Levels differ in speed only: nothing in a
//! body depends on the level, and no level enables fused multiply-add, so the compiler has no licence to change a bit.
//!
//! The names V2, V3 and V4 are those of the x86-64 psABI micro-architecture levels.

use std::cell::Cell;
use std::sync::OnceLock;

/// The environment variable that lowers the level: `scalar`, `neon`, `v2`, `v3` or `v4`.
pub const VARIABLE: &str = "MERGANSER_SIMD";

/// An instruction set for which every kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// What the compiler's target guarantees, and nothing more (SSE2 on x86-64).
    Scalar,
    /// NEON, which every 64-bit ARM processor has.
    Neon,
    /// x86-64-v2: SSE4.2 and POPCNT.
    V2,
    /// x86-64-v3 without FMA: AVX2, BMI.
    V3,
    /// x86-64-v4 without FMA: AVX-512 F, BW, CD, DQ, VL.
    V4,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Neon, Self::V2, Self::V3, Self::V4];

    /// The name used in [`VARIABLE`] and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V4 => "v4",
        }
    }

    /// Whether this machine can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::V2 | Self::V3 | Self::V4 => x86_has(self),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn x86_has(level: Level) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("popcnt");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("lzcnt");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    match level {
        Level::V2 => v2,
        Level::V3 => v3,
        Level::V4 => v4,
        Level::Scalar | Level::Neon => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_has(_: Level) -> bool {
    false
}

/// The levels this machine can run, lowest first; never empty.
pub fn available() -> impl DoubleEndedIterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The level in force on this thread: the best one available, unless [`VARIABLE`] or [`with_level`] says otherwise.
///
/// The processor and the environment are looked at once. A value of the variable that [`requested`] refuses is ignored
/// here, so a kernel never fails because of it.
#[inline]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    FORCED.get().unwrap_or_else(|| {
        *LEVEL.get_or_init(|| {
            let best = available().next_back().unwrap_or(Level::Scalar);
            requested().ok().flatten().unwrap_or(best)
        })
    })
}

/// The level asked for in [`VARIABLE`], or `None` if the variable is unset or empty.
///
/// # Errors
/// A complete message, ready to be shown, if the value is no level or one that this machine cannot run.
pub fn requested() -> Result<Option<Level>, String> {
    match std::env::var_os(VARIABLE) {
        None => Ok(None),
        Some(value) => parse(&value.to_string_lossy()),
    }
}

fn parse(value: &str) -> Result<Option<Level>, String> {
    let name = value.trim().to_ascii_lowercase();
    if name.is_empty() {
        return Ok(None);
    }
    let choices = || available().map(Level::name).collect::<Vec<_>>().join(", ");
    match Level::ALL.into_iter().find(|level| level.name() == name) {
        Some(level) if level.is_available() => Ok(Some(level)),
        Some(_) => Err(format!(
            "{VARIABLE}={value:?}: this machine does not have that instruction set; it can run {}",
            choices()
        )),
        None => Err(format!(
            "{VARIABLE}={value:?} is no instruction set; expected one of {}",
            choices()
        )),
    }
}

/// Runs `work` with the kernels called on this thread at `level`, for tests and benchmarks.
///
/// A level that this machine cannot run is replaced by the one in force. The result does not depend on the level.
pub fn with_level<R>(level: Level, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.get());
    if level.is_available() {
        FORCED.set(Some(level));
    }
    work()
}

/// Compiles one function body for every [`Level`] and dispatches on [`level`].
///
/// The body must reach its helpers through `#[inline(always)]` functions, or they keep the baseline instruction set.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$(const $g:ident: $gt:ty),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$(const $g: $gt),+>)? ($($arg: $ty),*) $(-> $ret)? {
            // Forced inlining is the mechanism: it is what carries a caller's target features into the body.
            #[allow(clippy::inline_always)]
            #[inline(always)]
            fn plain $(<$(const $g: $gt),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "sse4.2,popcnt")]
            fn v2 $(<$(const $g: $gt),+>)? ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$($g),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn v3 $(<$(const $g: $gt),+>)? ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$($g),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
            fn v4 $(<$(const $g: $gt),+>)? ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$($g),+>)? ($($arg),*)
            }

            // SAFETY: `level` returns V2, V3 or V4 only if `Level::is_available` has detected every feature enabled above.
            #[allow(unsafe_code)]
            match $crate::simd::level() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::V4 => unsafe { v4 $(::<$($g),+>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::V3 => unsafe { v3 $(::<$($g),+>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::V2 => unsafe { v2 $(::<$($g),+>)? ($($arg),*) },
                _ => plain $(::<$($g),+>)? ($($arg),*),
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for level in available() {
            assert_eq!(parse(level.name()), Ok(Some(level)));
        }
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse(" SCALAR "), Ok(Some(Level::Scalar)));
    }

    #[test]
    fn a_wrong_value_is_reported_with_the_choices() {
        let message = parse("avx9").expect_err("no such level");
        assert!(
            message.contains("MERGANSER_SIMD=\"avx9\"") && message.contains("scalar"),
            "{message}"
        );
        let foreign = if cfg!(target_arch = "aarch64") {
            "v4"
        } else {
            "neon"
        };
        let message = parse(foreign).expect_err("not on this machine");
        assert!(message.contains("does not have"), "{message}");
    }

    #[test]
    fn a_forced_level_ends_with_its_scope() {
        let outside = level();
        for forced in Level::ALL {
            with_level(forced, || {
                assert_eq!(
                    level(),
                    if forced.is_available() {
                        forced
                    } else {
                        outside
                    }
                );
            });
            assert_eq!(level(), outside);
        }
    }
}
