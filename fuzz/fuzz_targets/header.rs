//! safetensors headers. Whatever is accepted describes tensors that lie inside the file, end to end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merganser_store::header;

fuzz_target!(|data: &[u8]| {
    check(data, data.len() as u64);
    // The same bytes as JSON behind a right length field, so that the fuzzer need not find the length by itself.
    let (data_len, json) = match data.split_first_chunk::<4>() {
        Some((len, json)) => (u64::from(u32::from_le_bytes(*len)), json),
        None => return,
    };
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    check(&file, file.len() as u64 + data_len);
});

fn check(bytes: &[u8], file_len: u64) {
    let Ok(header) = header::parse(bytes, file_len) else {
        return;
    };
    for tensor in &header.tensors {
        let empty = tensor.shape.contains(&0);
        let elements = if empty { 0 } else { tensor.shape.iter().product() };
        assert_eq!(tensor.nbytes, (elements * tensor.dtype.size()) as u64);
        assert!(tensor.offset + tensor.nbytes <= file_len);
    }
}
