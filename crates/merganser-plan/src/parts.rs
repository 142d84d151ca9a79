//! A merge spread over several machines: every part owns whole output files.
//!
//! Files are dealt out by cost, the most expensive first to the part with the least to do (longest processing time
//! first), which is the same on every machine because it follows from the plan alone.

use crate::Plan;

/// The share of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Indices of its shards.
    pub shards: Vec<usize>,
    /// Bytes it reads and writes, statistics passes included.
    pub cost: u64,
}

impl Plan {
    /// Splits the merge into `count` parts, some of them empty if there are fewer output files than parts.
    pub fn parts(&self, count: usize) -> Vec<Part> {
        let mut parts = vec![
            Part {
                shards: Vec::new(),
                cost: 0
            };
            count.max(1)
        ];
        let mut costs: Vec<(u64, usize)> = self
            .shards
            .iter()
            .enumerate()
            .map(|(i, _)| (self.shard_cost(i), i))
            .collect();
        costs.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        for (cost, shard) in costs {
            if let Some(part) = parts.iter_mut().min_by_key(|part| part.cost) {
                part.cost += cost;
                part.shards.push(shard);
            }
        }
        for part in &mut parts {
            part.shards.sort_unstable();
        }
        parts
    }

    fn shard_cost(&self, shard: usize) -> u64 {
        self.shards[shard]
            .outputs
            .iter()
            .map(|i| &self.outputs[*i])
            .map(|output| {
                self.input_bytes_of(output) * u64::from(self.passes(output)) + output.nbytes
            })
            .sum()
    }
}
