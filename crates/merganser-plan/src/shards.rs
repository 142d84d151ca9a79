//! Where every output tensor will lie: known before the first byte is merged, so that tensors can be written in any
//! order, in parallel and by several machines.

use std::collections::BTreeMap;

use merganser_store::header::{self, TensorSpec};

use crate::{Output, Shard};

/// Fills shards in output order up to `limit` bytes of data each and gives every output its place.
///
/// Within a shard, tensors of wider types come first, so that each starts at a multiple of its element size.
pub(crate) fn pack(
    outputs: &mut [Output],
    limit: u64,
    stem: &str,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<Shard>, String> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for (i, output) in outputs.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if filled + output.nbytes <= limit => group.push(i),
            _ => {
                groups.push(vec![i]);
                filled = 0;
            }
        }
        filled += output.nbytes;
    }
    if groups.is_empty() {
        groups.push(Vec::new());
    }
    let count = groups.len();
    let mut shards = Vec::with_capacity(count);
    for (number, mut group) in groups.into_iter().enumerate() {
        group.sort_by_key(|i| std::cmp::Reverse(outputs[*i].dtype.size()));
        let specs: Vec<TensorSpec> = group
            .iter()
            .map(|i| &outputs[*i])
            .map(|output| TensorSpec {
                name: output.name.clone(),
                dtype: output.dtype,
                shape: output.shape.clone(),
            })
            .collect();
        let layout = header::compose(metadata, &specs).map_err(|error| error.to_string())?;
        for (i, offset) in group.iter().zip(&layout.offsets) {
            outputs[*i].shard = number;
            outputs[*i].offset = *offset;
        }
        let file = if count == 1 {
            format!("{stem}.safetensors")
        } else {
            format!("{stem}-{:05}-of-{count:05}.safetensors", number + 1)
        };
        shards.push(Shard {
            file,
            header: layout.header,
            size: layout.file_len,
            outputs: group,
        });
    }
    Ok(shards)
}
