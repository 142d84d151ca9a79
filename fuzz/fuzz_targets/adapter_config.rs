//! adapter_config.json of PEFT adapters. Whatever is accepted gives every module a rank and a finite scale.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merganser_store::adapter;

fuzz_target!(|text: &str| {
    let Ok(config) = adapter::parse_config(text) else {
        return;
    };
    for module in ["model.layers.0.self_attn.q_proj", "lm_head", "", "é.\u{0}"] {
        let (rank, scale) = config.rank_and_scale(module);
        assert!(rank > 0 && scale.is_finite(), "rank {rank}, scale {scale}");
    }
});
