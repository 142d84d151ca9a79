//! Indices of sharded checkpoints. Whatever is accepted names shards inside the folder.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use merganser_store::checkpoint;

fuzz_target!(|text: &str| {
    let Ok(index) = checkpoint::parse_index(text) else {
        return;
    };
    for shard in index.weight_map.values() {
        let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        assert!(Path::new(shard).components().all(plain), "{shard}");
    }
});
