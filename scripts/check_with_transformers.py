#!/usr/bin/env python3
"""Load merged models in transformers and compare them with a merge done in plain torch.

    pip install torch transformers safetensors pyyaml
    cargo build --release
    python scripts/check_with_transformers.py            # the examples of this repository
    python scripts/check_with_transformers.py recipe.yml out/    # a merge of your own, with methods listed below

For every recipe the merged folder is loaded with AutoModelForCausalLM and AutoTokenizer, and its logits on a few texts are
compared with those of a model whose weights are merged here, in float64, from the formulas. Methods checked: linear,
task_arithmetic, ties, slerp, passthrough with slices. Other methods are only loaded and run.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target" / "release" / "merganser"
TEXTS = ["A merganser dives for fish.", "1 + 1 = 2", "Größe, 大小, размер"]
# Merged weights are stored in bf16 and the reference is rounded to bf16 as well, so only elements on the edge between two
# bf16 numbers differ. The logits then differ by far less than this share of their spread.
TOLERANCE = 0.02


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def weights(reference, folder):
    """State dict of a model reference `path` or `path+adapter`, in float64."""
    path, _, adapter = reference.partition("+")
    state = {k: v.double() for k, v in load(folder / path).state_dict().items()}
    if adapter:
        config = json.loads((folder / adapter / "adapter_config.json").read_text())
        tensors = load_file(folder / adapter / "adapter_model.safetensors")
        for name in [n for n in tensors if n.endswith("lora_A.weight")]:
            target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            down, up = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            state[target] = state[target] + config["lora_alpha"] / config["r"] * up @ down
    return state


def setting(parameters, key, name, t, default):
    """A parameter's value for a tensor: scalar, gradient, or list of filtered cases."""
    value = parameters.get(key, default)
    cases = value if isinstance(value, list) and value and isinstance(value[0], dict) else [{"value": value}]
    for case in cases:
        if case.get("filter", "*") == "*" or case["filter"] in name:
            value = case["value"]
            break
    if isinstance(value, list):
        s = t * (len(value) - 1)
        i = int(s)
        value = (1 - s + i) * value[i] + (s - i) * value[min(i + 1, len(value) - 1)]
    return value


def position(name, layers):
    words = name.split(".")
    number = next((int(w) for w in words if w.isdigit()), None)
    return 0.0 if number is None else number / (layers - 1)


def trim(delta, density):
    keep = max(1, int(density * delta.numel()))
    order = delta.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return torch.where(mask.view_as(delta), delta, 0.0)


def slerp(a, b, t):
    u, v = a.flatten() / a.norm(), b.flatten() / b.norm()
    dot = (u @ v).clamp(-1, 1)
    if dot.abs() > 0.9995:
        return (1 - t) * a + t * b
    angle = dot.acos()
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


def merge_in_torch(recipe, folder):
    """The merged state dict in float64, or None if this script does not know the method."""
    method, shared = recipe["merge_method"], recipe.get("parameters", {})
    if method == "passthrough" and "slices" in recipe:
        out, at = {}, 0
        for piece in recipe["slices"]:
            (source,) = piece["sources"]
            state = weights(source["model"], folder)
            if not out:
                out.update({k: v for k, v in state.items() if "embed_tokens" in k})
            for layer in range(*source["layer_range"]):
                prefix = f"model.layers.{layer}."
                for name in [n for n in state if n.startswith(prefix)]:
                    out[name.replace(prefix, f"model.layers.{at}.")] = state[name]
                at += 1
        out.update({k: v for k, v in state.items() if k.startswith(("lm_head", "model.norm"))})
        return out
    if method not in ("linear", "task_arithmetic", "ties", "slerp") or "models" not in recipe:
        return None
    inputs = [(m["model"], m.get("parameters", {})) for m in recipe["models"]]
    base_name = recipe.get("base_model")
    base = weights(base_name, folder) if base_name else None
    others = [(weights(m, folder), p) for m, p in inputs if m != base_name or method == "linear"]
    names = others[0][0].keys()
    layers = 1 + max(int(w) for n in names for w in n.split(".") if w.isdigit())
    out = {}
    for name in names:
        t = position(name, layers)
        pick = lambda own, key, default: setting({**shared, **own}, key, name, t, default)
        ws = [pick(p, "weight", 1.0) for _, p in others]
        if method == "linear":
            out[name] = sum(w * s[name] for w, (s, _) in zip(ws, others))
            if shared.get("normalize", True):
                out[name] /= sum(ws)
        elif method == "slerp":
            out[name] = slerp(base[name], others[0][0][name], pick({}, "t", None))
        else:
            deltas = [s[name] - base[name] for s, _ in others]
            if method == "ties":
                deltas = [trim(d, pick(p, "density", 1.0)) for d, (_, p) in zip(deltas, others)]
            deltas = [(torch.tensor(w, dtype=torch.float32) * d.float()).double() for w, d in zip(ws, deltas)]
            mixed = sum(deltas)
            if method == "ties":
                # Deltas of bf16 models are few whole steps, so votes often cancel up to rounding. Which sign such an
                # element gets is chance; in f32, model by model, it is the chance merganser takes.
                votes = sum(d.float() for d in deltas)
                elected = torch.where(votes >= 0, 1.0, -1.0).double()
                match = [d.sign() == elected for d in deltas]
                mixed = sum(d * m for d, m in zip(deltas, match))
                divisor = sum(w * m for w, m in zip(ws, match))
                if shared.get("normalize", True):
                    mixed = mixed / torch.where(divisor == 0, 1.0, divisor)
            out[name] = base[name] + shared.get("lambda", 1.0) * mixed
    return out


def logits(model, tokenizer):
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS])


def check(path, out):
    documents = list(yaml.safe_load_all(path.read_text()))
    tokenizer = AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text, text
    model = load(out)
    found = logits(model, tokenizer)
    assert torch.isfinite(found).all(), "logits are not finite"
    expected = merge_in_torch(documents[0], path.parent) if len(documents) == 1 else None
    if expected is None:
        print(f"{path.name}: loads and runs; this script has no reference for it")
        return True
    reference = load(out)
    reference.load_state_dict({k: v.bfloat16().float() for k, v in expected.items()})
    gap = (found - logits(reference, tokenizer)).abs().max() / found.std()
    print(f"{path.name}: largest difference of a logit {gap:.2e} of their spread")
    return bool(gap < TOLERANCE)


def main():
    logging.disable_progress_bar()
    if len(sys.argv) == 3:
        good = check(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    else:
        good = True
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted((ROOT / "examples").glob("*.yml")):
                if "output: adapter" in path.read_text():
                    continue  # check_with_peft.py's
                out = pathlib.Path(folder) / path.stem
                subprocess.run([PROGRAM, "merge", path, out, "--quiet"], check=True)
                good &= check(path, out)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
