//! What a tensor's name tells: its place in a stack of layers, or before or after it.
//!
//! No architecture tables: the first `.N.` of a name is a layer index and what stands before it names the stack.
//! Everything else feeds the first layer (embeddings) or reads the last one (final norm, heads).

/// The place of a tensor in its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// Part of layer `index` of the stack called `stack` (`model.layers`); `suffix` is the rest of the name.
    Layer {
        /// Name of the stack.
        stack: &'a str,
        /// Number in the name.
        index: usize,
        /// What follows the number.
        suffix: &'a str,
    },
    /// Read before the first layer.
    Pre,
    /// Read after the last layer.
    Post,
}

/// Words of a name that mark weights used before the first layer.
const PRE: &[&str] = &[
    "wte",
    "wpe",
    "pre_layrnorm",
    "pre_layernorm",
    "cls_token",
    "shared",
    "ln_pre",
    "patchify",
];

/// Words of a name that mark weights used after the last layer.
const POST: &[&str] = &[
    "lm_head",
    "embed_out",
    "score",
    "classifier",
    "pre_classifier",
    "pooler",
    "qa_outputs",
    "cls",
    "head",
    "heads",
    "ln_f",
    "norm",
    "norm_f",
    "final_norm",
    "final_layernorm",
    "final_layer_norm",
    "post_layernorm",
    "ln_post",
    "layernorm",
    "visual_projection",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "output_layer",
    "output",
    "proj_out",
    "lm_head_norm",
];

impl<'a> Role<'a> {
    /// Reads the role off a tensor's name.
    pub fn of(name: &'a str) -> Self {
        let mut at = 0;
        for (i, word) in name.split('.').enumerate() {
            let end = at + word.len();
            if i > 0
                && end < name.len()
                && let Some(index) = number(word)
            {
                return Self::Layer {
                    stack: &name[..at - 1],
                    index,
                    suffix: &name[end + 1..],
                };
            }
            at = end + 1;
        }
        let post = |word: &str| POST.contains(&word);
        let pre =
            |word: &str| word != "embed_out" && (word.contains("embed") || PRE.contains(&word));
        if !name.split('.').any(pre) && name.split('.').any(post) {
            Self::Post
        } else {
            Self::Pre
        }
    }
}

/// A canonical decimal number (`07` is a name, not a layer).
fn number(word: &str) -> Option<usize> {
    let index: usize = word.parse().ok()?;
    (index.to_string() == word).then_some(index)
}

/// The name of the same tensor in layer `index`.
pub(crate) fn layer_name(stack: &str, index: usize, suffix: &str) -> String {
    format!("{stack}.{index}.{suffix}")
}

/// Whether the rows (first dimension) of a tensor are the vocabulary.
pub(crate) fn is_vocabulary(name: &str) -> bool {
    is_output_head(name) || is_input_embedding(name)
}

/// Whether a tensor maps hidden states to the vocabulary.
pub(crate) fn is_output_head(name: &str) -> bool {
    ends(
        name,
        &[
            "lm_head.weight",
            "lm_head.bias",
            "embed_out.weight",
            "output_layer.weight",
            "predictions.decoder.weight",
        ],
    )
}

/// Whether a tensor is the input embedding of tokens.
pub(crate) fn is_input_embedding(name: &str) -> bool {
    ends(
        name,
        &[
            "embed_tokens.weight",
            "wte.weight",
            "word_embeddings.weight",
            "embed_in.weight",
            "tok_embeddings.weight",
            "shared.weight",
        ],
    )
}

/// Buffers that a loader rebuilds, so that a model may lack them.
pub fn is_rebuilt_buffer(name: &str) -> bool {
    ends(
        name,
        &["rotary_emb.inv_freq", "position_ids", "masked_bias"],
    ) || name.ends_with(".attn.bias")
        || name.ends_with(".attention.bias")
}

fn ends(name: &str, endings: &[&str]) -> bool {
    endings.iter().any(|ending| {
        name.strip_suffix(ending)
            .is_some_and(|head| head.is_empty() || head.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_between_dots_is_the_layer() {
        let role = Role::of("model.layers.12.mlp.experts.3.w1.weight");
        assert_eq!(
            role,
            Role::Layer {
                stack: "model.layers",
                index: 12,
                suffix: "mlp.experts.3.w1.weight"
            }
        );
        assert_eq!(
            Role::of("transformer.h.0.attn.c_attn.bias"),
            Role::Layer {
                stack: "transformer.h",
                index: 0,
                suffix: "attn.c_attn.bias"
            }
        );
    }

    #[test]
    fn embeddings_come_first_and_norms_and_heads_last() {
        for name in [
            "model.embed_tokens.weight",
            "transformer.wpe.weight",
            "bert.embeddings.LayerNorm.weight",
            "model.decoder.embed_positions.weight",
        ] {
            assert_eq!(Role::of(name), Role::Pre, "{name}");
        }
        for name in [
            "lm_head.weight",
            "model.norm.weight",
            "transformer.ln_f.bias",
            "classifier.weight",
            "bert.pooler.dense.weight",
            "embed_out.weight",
        ] {
            assert_eq!(Role::of(name), Role::Post, "{name}");
        }
    }

    #[test]
    fn a_number_at_either_end_is_no_layer() {
        assert_eq!(Role::of("0.weight"), Role::Pre);
        assert_eq!(Role::of("a.b.3"), Role::Pre);
        assert_eq!(Role::of("a.007.b"), Role::Pre);
    }

    #[test]
    fn endings_match_whole_words() {
        assert!(
            is_output_head("lm_head.weight") && is_output_head("language_model.lm_head.weight")
        );
        assert!(!is_output_head("xlm_head.weight"));
    }
}
