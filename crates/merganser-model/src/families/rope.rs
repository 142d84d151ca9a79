//! Frequencies of rotary positions (Su et al. 2021) and their variants for long contexts, from a config.
//!
//! With head width e, partial factor p and base θ, pair i of r = p·e/2 turns by `θ^(−i/r)` a position. Variants, by
//! `rope_type`:
//!
//! | type | frequency |
//! |---|---|
//! | `default` | as above |
//! | `linear` | divided by `factor` (Chen et al. 2023) |
//! | `llama3` | divided by `factor` where the wave is longer than the old context, mixed in between (Llama 3.1) |
//! | `yarn` | divided by `factor` where few turns fit the old context, mixed in between; cosines × (0.1 ln factor + 1) (Peng et al. 2023) |
//! | `longrope` | divided by `short_factor[i]`; longer texts than the old context would need other factors and are refused (Ding et al. 2024) |
//!
//! `dynamic` depends on the length of a text and is refused.

use std::f64::consts::PI;

use serde_json::Value;

use crate::config::Config;
use crate::error::Result;
use crate::op::RotaryTable;

/// What a config says about rotary positions.
pub(super) struct Rope {
    pub(super) table: RotaryTable,
    /// Elements of a head that turn.
    pub(super) rotated: usize,
    /// Longest text the frequencies are meant for, where that changes them.
    pub(super) max_len: Option<usize>,
}

/// Reads `rope_parameters` (or `rope_scaling` and `rope_theta` of older configs). `layer_type` chooses among several sets
/// (Gemma 3); `theta` is the family's default.
pub(super) fn rope(
    config: &Config,
    head_dim: usize,
    layer_type: Option<&str>,
    theta: f64,
) -> Result<Rope> {
    let mut parameters = config.nested("rope_parameters")?;
    if let (Some(sets), Some(name)) = (&parameters, layer_type)
        && sets.has(name)
    {
        parameters = sets.nested(name)?;
    }
    let parameters = match parameters {
        Some(parameters) => Some(parameters),
        None => config.nested("rope_scaling")?,
    };
    let source = parameters.as_ref().unwrap_or(config);
    let theta = match source.positive_if("rope_theta")? {
        Some(theta) => theta,
        None => config.positive_or("rope_theta", theta)?,
    };
    if theta < 1.0 {
        return Err(source.refused("rope_theta", "a number from 1"));
    }
    let partial = match source.positive_if("partial_rotary_factor")? {
        Some(partial) => partial,
        None => config.positive_or("partial_rotary_factor", 1.0)?,
    };
    let rotated = (head_dim as f64 * partial) as usize;
    if partial > 1.0 || rotated < 2 || !rotated.is_multiple_of(2) {
        return Err(source.refused(
            "partial_rotary_factor",
            format!("a part of the head width {head_dim} that is even and not 0"),
        ));
    }
    let variant = match &parameters {
        Some(parameters) => match parameters.text_if("rope_type")? {
            Some(variant) => variant,
            None => parameters.text_if("type")?.unwrap_or("default"),
        },
        None => "default",
    };
    let base = |i: usize| theta.powf(-2.0 * i as f64 / rotated as f64);
    let pairs = rotated / 2;
    let plain = |frequencies: Vec<f64>| Rope {
        table: RotaryTable {
            frequencies,
            factor: 1.0,
        },
        rotated,
        max_len: None,
    };
    let old_context = || match source.size_if("original_max_position_embeddings")? {
        Some(len) => Ok(len),
        None => match config.size_if("original_max_position_embeddings")? {
            Some(len) => Ok(len),
            None => config.size("max_position_embeddings"),
        },
    };
    let needed = |key: &str| {
        source.positive_if(key)?.ok_or_else(|| {
            source.refused(key, format!("a number from 1e-12 to 1e12 for {variant}"))
        })
    };
    let rope = match variant {
        "default" => plain((0..pairs).map(base).collect()),
        "linear" => {
            let factor = needed("factor")?;
            plain((0..pairs).map(|i| base(i) / factor).collect())
        }
        "llama3" => {
            let (factor, low, high) = (
                needed("factor")?,
                needed("low_freq_factor")?,
                needed("high_freq_factor")?,
            );
            if low >= high {
                return Err(source.refused("low_freq_factor", "less than `high_freq_factor`"));
            }
            let old = old_context()? as f64;
            let scaled = |i| {
                let frequency: f64 = base(i);
                // Turns in the old context.
                let turns = old * frequency / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            };
            plain((0..pairs).map(scaled).collect())
        }
        "yarn" => {
            let factor = needed("factor")?;
            let old = old_context()? as f64;
            let fast = source.positive_or("beta_fast", 32.0)?;
            let slow = source.positive_or("beta_slow", 1.0)?;
            // The pair that turns this often in the old context.
            let pair =
                |turns: f64| rotated as f64 * (old / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (mut first, mut last) = (pair(fast), pair(slow));
            if source.flag_or("truncate", true)? {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, last) = (first.max(0.0), last.min(rotated as f64 - 1.0));
            let width = if first == last { 0.001 } else { last - first };
            let scaled = |i| {
                let kept = 1.0 - ((i as f64 - first) / width).clamp(0.0, 1.0);
                base(i) * (kept + (1.0 - kept) / factor)
            };
            source.absent(&["mscale", "mscale_all_dim"])?;
            let gain = if factor > 1.0 {
                0.1 * factor.ln() + 1.0
            } else {
                1.0
            };
            let mut rope = plain((0..pairs).map(scaled).collect());
            rope.table.factor = source.positive_or("attention_factor", gain)?;
            rope
        }
        "longrope" | "su" => {
            let old = old_context()?;
            let short = short_factors(source, pairs)?;
            let stretch = match source.positive_if("factor")? {
                Some(factor) => factor,
                None => config.size("max_position_embeddings")? as f64 / old as f64,
            };
            let gain = if stretch > 1.0 {
                (1.0 + stretch.ln() / (old as f64).ln()).sqrt()
            } else {
                1.0
            };
            let mut rope = plain((0..pairs).map(|i| base(i) / short[i]).collect());
            rope.table.factor = source.positive_or("attention_factor", gain)?;
            rope.max_len = Some(old);
            rope
        }
        _ => {
            return Err(source.refused(
                if source.has("rope_type") {
                    "rope_type"
                } else {
                    "type"
                },
                "one of default, linear, llama3, yarn, longrope",
            ));
        }
    };
    let table = &rope.table;
    let finite = table.frequencies.iter().all(|f| f.is_finite()) && table.factor.is_finite();
    if finite {
        Ok(rope)
    } else {
        Err(config.refused(
            "rope_parameters",
            "numbers that give finite frequencies (in older configs: `rope_scaling` and `rope_theta`)",
        ))
    }
}

fn short_factors(source: &Config, pairs: usize) -> Result<Vec<f64>> {
    let factors: Option<Vec<f64>> = source
        .get("short_factor")
        .and_then(Value::as_array)
        .filter(|list| list.len() == pairs)
        .and_then(|list| {
            list.iter()
                .map(|factor| factor.as_f64().filter(|f| f.is_finite() && *f > 0.0))
                .collect()
        });
    factors.ok_or_else(|| {
        source.refused(
            "short_factor",
            format!("a list of {pairs} numbers greater than 0"),
        )
    })
}
