#!/usr/bin/env python3
"""Load merged adapters in PEFT and compare their logits.

    pip install torch transformers peft
    cargo build --release
    python scripts/check_with_peft.py

The two adapters of examples/models are merged by several methods. Each merged folder is loaded with PeftModel.from_pretrained
on the base, and its logits are compared with those of the whole model that the same recipe makes (`output: model`), loaded
with transformers; for PEFT's own combinations also with those of add_weighted_adapter. Merges of adapters with biases of B are
compared with both adapters at work side by side. And adapters extracted from the fine-tunes of examples/models are loaded, and
their logits compared with those of the base that `merganser apply` puts them on.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "examples/models"
PROGRAM = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/merganser"
TOKENS = torch.arange(3, 43).reshape(4, 10)
NAMES = ["adapter", "adapter-2"]
WEIGHTS = [0.7, 0.6]
METHODS = {
    "core_space, ta": ("core_space", "inner: ta"),
    "core_space, tsv": ("core_space", "inner: tsv"),
    "core_space, iso_c, rank 3": ("core_space", "inner: iso_c, rank: 3"),
    "peft, cat": ("peft", "combination_type: cat"),
    "peft, svd": ("peft", "combination_type: svd, svd_rank: 3"),
    "peft, magnitude_prune_svd": ("peft", "combination_type: magnitude_prune_svd, svd_rank: 4, density: 0.5"),
    "peft, ties_svd": ("peft", "combination_type: ties_svd, svd_rank: 4, density: 0.5"),
}
SUMS = {"core_space, ta": ("core_space", "inner: ta"), "peft, cat": ("peft", "combination_type: cat")}
EXTRACTIONS = {
    "dense": [],
    "low-rank": ["--embed-lora"],
    "sparse": ["--save-module", "q_proj", "--embed-lora"],
}


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def base():
    return AutoModelForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)


def recipe(method, parameters, adapter, folder=MODELS):
    text = f"merge_method: {method}\noutput: {'adapter' if adapter else 'model'}\ndtype: float32\n"
    text += f"base_model: {MODELS}/base\nparameters: {{{parameters}}}\nmodels:\n"
    for name, weight in zip(NAMES, WEIGHTS):
        text += f"  - model: {MODELS}/base+{folder}/{name}\n    parameters: {{weight: {weight}}}\n"
    return text


def own(parameters):
    """PEFT's combination of the same adapters."""
    options = dict(item.split(": ") for item in parameters.split(", "))
    model = PeftModel.from_pretrained(base(), MODELS / NAMES[0], adapter_name="0")
    model.load_adapter(MODELS / NAMES[1], adapter_name="1")
    more = {}
    if "svd_rank" in options:
        more["svd_rank"] = int(options["svd_rank"])
    if "density" in options:
        more["density"] = float(options["density"])
    model.add_weighted_adapter(["0", "1"], WEIGHTS, "merged", options["combination_type"], **more)
    model.set_adapter("merged")
    return logits(model)


def with_biases(folder):
    """Two adapters with biases of B, one of them rank-stabilised with a negative α."""
    for name, alpha, stabilised in zip(NAMES, (8, -3), (False, True)):
        config = LoraConfig(
            r=4, lora_alpha=alpha, use_rslora=stabilised, lora_bias=True, target_modules=["q_proj", "down_proj"]
        )
        model = get_peft_model(base(), config)
        torch.manual_seed(alpha)
        with torch.no_grad():
            for name_of, parameter in model.named_parameters():
                if "lora_" in name_of:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)


def side_by_side(folder):
    """Logits of the base with both adapters, weighted."""
    model = PeftModel.from_pretrained(base(), folder / NAMES[0], adapter_name="0")
    model.load_adapter(folder / NAMES[1], adapter_name="1")
    model.base_model.set_adapter(["0", "1"])
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            for name in scaling:
                scaling[name] *= WEIGHTS[int(name)]
    return logits(model)


def say(title, change, distances):
    """Prints a line; whether all distances are small beside the change."""
    good = change > 0 and all(x < 1e-3 for x in distances.values())
    said = ", ".join(f"{x:.1e} from {name}" for name, x in distances.items())
    print(f"{'ok' if good else 'NO'}  {title}: logits change by up to {change:.3f}; of that, {said}")
    return good


logging.disable_progress_bar()
failed = False
plain = logits(base())
for title, (method, parameters) in METHODS.items():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for adapter in (True, False):
            path = folder / f"{adapter}.yml"
            path.write_text(recipe(method, parameters, adapter))
            subprocess.run([PROGRAM, "merge", path, folder / str(adapter), "--quiet"], check=True)
        merged = logits(PeftModel.from_pretrained(base(), folder / "True"))
        whole = logits(AutoModelForCausalLM.from_pretrained(folder / "False", dtype=torch.float32))
    change = (merged - plain).abs().max().item()
    distances = {"the whole model": (merged - whole).abs().max().item() / change}
    if method == "peft":
        distances["PEFT's own"] = (merged - own(parameters)).abs().max().item() / change
    failed |= not say(title, change, distances)
for title, (method, parameters) in SUMS.items():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with_biases(folder)
        (folder / "recipe.yml").write_text(recipe(method, parameters, True, folder))
        subprocess.run([PROGRAM, "merge", folder / "recipe.yml", folder / "out", "--quiet"], check=True)
        merged = logits(PeftModel.from_pretrained(base(), folder / "out"))
        both = side_by_side(folder)
    change = (merged - plain).abs().max().item()
    failed |= not say(f"{title}, lora_bias", change, {"both adapters": (merged - both).abs().max().item() / change})
for name, options in EXTRACTIONS.items():
    with tempfile.TemporaryDirectory() as folder:
        out, whole = pathlib.Path(folder) / "out", pathlib.Path(folder) / "whole"
        fixed = ["--quiet", "--dtype", "float32", "-o"]
        command = [PROGRAM, "extract", "lora", MODELS / name, MODELS / "base", *fixed, out, *options]
        subprocess.run(command, check=True)
        subprocess.run([PROGRAM, "apply", MODELS / "base", out, *fixed, whole], check=True)
        extracted = logits(PeftModel.from_pretrained(base(), out))
        applied = logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))
    change = (applied - plain).abs().max().item()
    title = " ".join(["extract lora", name, *options])
    failed |= not say(title, change, {"the applied one": (extracted - applied).abs().max().item() / change})
sys.exit(failed)
