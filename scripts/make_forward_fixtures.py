#!/usr/bin/env python3
"""Makes tests/golden/forward: one tiny checkpoint of every family merganser-model runs, with what transformers gives.

    python scripts/make_forward_fixtures.py [FAMILY...]      # all of them without arguments

Each folder holds

    config.json, model.safetensors   as transformers saves them, with names and prefixes of their own
    inputs.safetensors               input_ids, attention_mask, token_type_ids, decoder_input_ids, pixel_values
    expected.safetensors             last_hidden_state, and pooled, embeds, logits where the model has such a thing

Weights are random with a fixed seed and awkward on purpose: no bias is zero, no norm is one, heads of keys are fewer than
heads of queries, sequences are longer than sliding windows, batches are padded. Half of the checkpoints are stored in 16
bits; the expected values are computed in f32 from the rounded weights. Needs torch and transformers (5.x).
"""

import json
import pathlib
import shutil
import sys
import zlib

import torch
import transformers as tf
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "forward"
VOCAB = 60


def text_inputs(lengths=(9, 5, 1), low=3, pad=0, types=False):
    generator = torch.Generator().manual_seed(7)
    ids = torch.full((len(lengths), max(lengths)), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(low, VOCAB, (length,), generator=generator)
        mask[row, :length] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types:
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) > 3).long().expand_as(ids) * mask
    return inputs


def image_inputs(side=12, channels=3):
    generator = torch.Generator().manual_seed(8)
    return {"pixel_values": torch.randn((2, channels, side, side), generator=generator)}


def clip_text_inputs(eos):
    inputs = text_inputs()
    lengths = inputs["attention_mask"].sum(-1)
    inputs["input_ids"][inputs["input_ids"] == eos] = 5
    inputs["input_ids"][torch.arange(len(lengths)), lengths - 1] = eos
    return inputs


def t5_inputs():
    inputs = text_inputs()
    decoder = text_inputs(lengths=(4, 6, 2), low=2)
    decoder["input_ids"][:, 0] = 0
    inputs["decoder_input_ids"] = decoder["input_ids"]
    inputs["decoder_attention_mask"] = decoder["attention_mask"]
    return inputs


ENCODER = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=20, type_vocab_size=2, num_labels=3,
)  # fmt: skip
DECODER = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, max_position_embeddings=64,
)  # fmt: skip
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=12, patch_size=4,
)  # fmt: skip
CLIP_TEXT = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=20, projection_dim=24,
)  # fmt: skip
T5 = dict(
    vocab_size=VOCAB, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=10, decoder_start_token_id=0, pad_token_id=0,
    eos_token_id=1,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip


def clip(**changes):
    vision = dict(VISION, projection_dim=24)
    text = dict(CLIP_TEXT, eos_token_id=VOCAB - 1, bos_token_id=1)
    return tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **changes)


# name: (model class, config, inputs, stored type)
FAMILIES = {
    "bert": (tf.BertForSequenceClassification, tf.BertConfig(**ENCODER), text_inputs(types=True), torch.float32),
    "bert_tokens": (tf.BertForTokenClassification, tf.BertConfig(**ENCODER), text_inputs(), torch.bfloat16),
    "bert_mlm": (tf.BertForMaskedLM, tf.BertConfig(**ENCODER), text_inputs(), torch.float16),
    "minilm": (
        lambda config: tf.BertModel(config, add_pooling_layer=False),
        tf.BertConfig(**dict(ENCODER, hidden_act="gelu_new")), text_inputs(), torch.float16,
    ),
    "roberta": (
        tf.RobertaForSequenceClassification, tf.RobertaConfig(**dict(ENCODER, type_vocab_size=1), pad_token_id=1),
        text_inputs(pad=1), torch.float16,
    ),
    "roberta_mlm": (
        tf.RobertaForMaskedLM, tf.RobertaConfig(**dict(ENCODER, type_vocab_size=1), pad_token_id=1),
        text_inputs(pad=1), torch.bfloat16,
    ),
    "xlm_roberta": (
        tf.XLMRobertaModel, tf.XLMRobertaConfig(**dict(ENCODER, type_vocab_size=1), pad_token_id=1),
        text_inputs(pad=1), torch.bfloat16,
    ),
    "distilbert": (
        tf.DistilBertForSequenceClassification,
        tf.DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=40,
                            max_position_embeddings=20, num_labels=3),
        text_inputs(), torch.bfloat16,
    ),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig(**VISION, num_labels=5), image_inputs(), torch.float32),
    "vit_model": (tf.ViTModel, tf.ViTConfig(**VISION, qkv_bias=False), image_inputs(), torch.bfloat16),
    "deit": (
        tf.DeiTForImageClassificationWithTeacher, tf.DeiTConfig(**VISION, num_labels=5), image_inputs(), torch.bfloat16,
    ),
    "clip": (tf.CLIPModel, clip(), {**image_inputs(), **clip_text_inputs(VOCAB - 1)}, torch.float16),
    "clip_vision": (
        tf.CLIPVisionModelWithProjection, tf.CLIPVisionConfig(**VISION, projection_dim=24, hidden_act="gelu"),
        image_inputs(), torch.bfloat16,
    ),
    "clip_classifier": (tf.CLIPForImageClassification, clip(num_labels=5), image_inputs(), torch.bfloat16),
    "clip_text": (
        tf.CLIPTextModel, tf.CLIPTextConfig(**CLIP_TEXT, eos_token_id=2), clip_text_inputs(VOCAB - 1), torch.bfloat16,
    ),
    "llama": (
        tf.LlamaForCausalLM, tf.LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
        text_inputs(), torch.bfloat16,
    ),
    "llama_linear": (
        tf.LlamaModel,
        tf.LlamaConfig(**DECODER, rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=500.0)),
        text_inputs(), torch.bfloat16,
    ),
    "llama_yarn": (
        tf.LlamaModel,
        tf.LlamaConfig(**DECODER, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=100.0, beta_fast=4.0,
                                                       original_max_position_embeddings=16)),
        text_inputs(), torch.bfloat16,
    ),
    "llama_score": (
        tf.LlamaForSequenceClassification, tf.LlamaConfig(**DECODER, num_labels=3, pad_token_id=0, head_dim=12),
        text_inputs(), torch.bfloat16,
    ),
    "mistral": (
        tf.MistralForCausalLM, tf.MistralConfig(**DECODER, sliding_window=4, head_dim=10), text_inputs(), torch.bfloat16,
    ),
    "qwen2": (
        tf.Qwen2ForCausalLM, tf.Qwen2Config(**DECODER, tie_word_embeddings=True), text_inputs(), torch.bfloat16,
    ),
    "qwen3": (
        tf.Qwen3ForCausalLM, tf.Qwen3Config(**DECODER, head_dim=16, tie_word_embeddings=False), text_inputs(),
        torch.bfloat16,
    ),
    "gemma": (
        tf.GemmaForCausalLM, tf.GemmaConfig(**dict(DECODER, num_key_value_heads=1), head_dim=12), text_inputs(),
        torch.bfloat16,
    ),
    "gemma2": (
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config(**DECODER, head_dim=12, sliding_window=4, query_pre_attn_scalar=20,
                        attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        text_inputs(), torch.bfloat16,
    ),
    "gemma3": (
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig(
            **dict(DECODER, num_hidden_layers=3), head_dim=12, sliding_window=4, query_pre_attn_scalar=20,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"sliding_attention": dict(rope_type="default", rope_theta=100.0),
                             "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=5000.0)},
        ),
        text_inputs(), torch.bfloat16,
    ),
    "phi3": (
        tf.Phi3ForCausalLM,
        tf.Phi3Config(**DECODER, pad_token_id=0, sliding_window=5,
                      rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5)),
        text_inputs(), torch.bfloat16,
    ),
    "phi3_longrope": (
        tf.Phi3Model,
        tf.Phi3Config(**DECODER, pad_token_id=0, original_max_position_embeddings=16,
                      rope_parameters=dict(rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.2, 1.5, 2.0],
                                           long_factor=[2.0, 3.0, 4.0, 5.0], original_max_position_embeddings=16)),
        text_inputs(), torch.bfloat16,
    ),
    "gpt2": (
        tf.GPT2LMHeadModel, tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=20),
        text_inputs(), torch.float16,
    ),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config(**T5), t5_inputs(), torch.bfloat16),
    "t5_gated": (
        tf.T5ForConditionalGeneration, tf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        t5_inputs(), torch.bfloat16,
    ),
    "t5_encoder": (tf.T5EncoderModel, tf.T5Config(**T5), text_inputs(), torch.bfloat16),
}  # fmt: skip


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim >= 2:
                width = parameter[0].numel() if parameter.shape[0] > 1 else 4
                parameter.copy_(noise * 1.4 / width**0.5)
            else:
                parameter.add_(noise * 0.3)


def expected(name, model, inputs):
    results = {}
    if name == "clip":
        vision = model.vision_model(inputs["pixel_values"])
        text = model.text_model(inputs["input_ids"], inputs["attention_mask"])
        for tower, out, project in (("vision", vision, model.visual_projection), ("text", text, model.text_projection)):
            results[f"{tower}.last_hidden_state"] = out.last_hidden_state
            results[f"{tower}.pooled"] = out.pooler_output
            results[f"{tower}.embeds"] = project(out.pooler_output)
        return results
    kept = {}
    base = model.base_model
    if name in ("t5", "t5_gated"):
        base = model.decoder
    if name == "clip_classifier":
        base = model.vision_model

    def keep(_module, _inputs, output):
        kept.update(output)

    hook = base.register_forward_hook(keep, with_kwargs=False)
    out = model(**inputs)
    hook.remove()
    results["last_hidden_state"] = kept["last_hidden_state"]
    if kept.get("pooler_output") is not None:
        results["pooled"] = kept["pooler_output"]
    for key, value in (("logits", out.get("logits")), ("embeds", out.get("image_embeds"))):
        if value is not None:
            results[key] = value
    return results


def make(name, seed):
    make_model, config, inputs, dtype = FAMILIES[name]
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = make_model(config).eval()
    if name == "t5_gated":
        # As the published T5 v1.1 and Flan checkpoints: a head of its own.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.config.tie_word_embeddings = False
    randomize(model, seed)
    model = model.to(dtype)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Loaded again, because buffers that are not stored would have been rounded too.
    no_pooler = {"add_pooling_layer": False} if name == "minilm" else {}
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **no_pooler).eval()
    with torch.no_grad():
        results = expected(name, model, inputs)
    save_file({key: value.contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors")
    save_file({key: value.float().contiguous() for key, value in results.items()}, folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    peaks = {key: f"{value.abs().max():.2f}" for key, value in results.items()}
    print(f"{name}: {size} bytes, largest values {json.dumps(peaks)}")


def main():
    names = sys.argv[1:] or FAMILIES
    for name in names:
        make(name, zlib.crc32(name.encode()))


if __name__ == "__main__":
    main()
