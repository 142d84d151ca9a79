//! torch checkpoints, zipped and legacy. Whatever is accepted lies inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merganser_store::pickle;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = pickle::parse(data) else {
        return;
    };
    for tensor in &file.tensors {
        if tensor.shape.contains(&0) {
            continue;
        }
        let last: usize = tensor
            .shape
            .iter()
            .zip(&tensor.strides)
            .map(|(extent, stride)| (extent - 1) * stride)
            .sum();
        let end = tensor.offset + ((last + 1) * tensor.dtype.size()) as u64;
        assert!(end <= data.len() as u64, "{}", tensor.name);
    }
});
