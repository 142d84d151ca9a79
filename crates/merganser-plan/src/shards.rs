//! Where every output tensor will lie: known before the first byte is merged, so that tensors can be written in any
//! order, in parallel and by several machines.

use std::collections::BTreeMap;

use merganser_store::header::{self, TensorSpec};

use crate::{Output, Shard};

/// Fills shards in output order up to `limit` bytes of data each and gives every output its place. Outputs beside the
/// model go to one file of their own, `<beside>.safetensors`, of any size.
///
/// Within a shard, tensors of wider types come first, so that each starts at a multiple of its element size.
pub(crate) fn pack(
    outputs: &mut [Output],
    limit: u64,
    beside: &str,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<Shard>, String> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    let (model, extra): (Vec<usize>, Vec<usize>) =
        (0..outputs.len()).partition(|i| outputs[*i].extra.is_none());
    for i in model {
        let nbytes = outputs[i].nbytes;
        match groups.last_mut() {
            Some(group) if filled + nbytes <= limit => group.push(i),
            _ => {
                groups.push(vec![i]);
                filled = 0;
            }
        }
        filled += nbytes;
    }
    if groups.is_empty() {
        groups.push(Vec::new());
    }
    let count = groups.len();
    let mut shards = Vec::with_capacity(count + 1);
    for (number, group) in groups.into_iter().enumerate() {
        let file = if count == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", number + 1)
        };
        shards.push(place(outputs, group, number, file, metadata)?);
    }
    if !extra.is_empty() {
        let file = format!("{beside}.safetensors");
        let mut shard = place(outputs, extra, count, file, metadata)?;
        shard.extra = true;
        shards.push(shard);
    }
    Ok(shards)
}

/// Gives the outputs of one file their places in it.
fn place(
    outputs: &mut [Output],
    mut group: Vec<usize>,
    number: usize,
    file: String,
    metadata: &BTreeMap<String, String>,
) -> Result<Shard, String> {
    group.sort_by_key(|i| std::cmp::Reverse(outputs[*i].dtype.size()));
    let specs: Vec<TensorSpec> = group
        .iter()
        .map(|i| &outputs[*i])
        .map(|output| TensorSpec {
            name: output.name.clone(),
            dtype: output.dtype,
            shape: output.stored_shape(),
        })
        .collect();
    let layout = header::compose(metadata, &specs).map_err(|error| error.to_string())?;
    for (i, offset) in group.iter().zip(&layout.offsets) {
        outputs[*i].shard = number;
        outputs[*i].offset = *offset;
    }
    Ok(Shard {
        file,
        header: layout.header,
        size: layout.file_len,
        outputs: group,
        extra: false,
    })
}
