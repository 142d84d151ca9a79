#!/usr/bin/env python3
"""Merges and evaluates a suite of fine-tunes by several methods and prints one table.

    python3 scripts/bench_suite.py SUITE [--merganser target/release/merganser] [--out FOLDER] [--lora] [--samples 256]
                                   [--only NAME …]

A suite is a folder with base/, task_<t>/ (or lora_<t>/ with --lora), heads/<t>.safetensors and data/<t>.safetensors, which
holds calib.* (samples without labels are enough) and test.* with test.labels. Nothing but the standard library is needed.
Nothing is chosen by the test split: every method runs once, with the parameters below.
"""

import argparse
import json
import pathlib
import subprocess
import time

PROJECTION = "merge_method: projection\n"
# One setting for all suites, chosen by how near the outputs of heads come to the fine-tunes' on held-out calibration samples.
STRONG = "prior: tsv_m\nparameters: {{alpha: 1.3, ridge: 1, ridge_scale: input{}}}\n"
METHODS = {
    "average": "merge_method: task_arithmetic\nparameters: {weight: 1, normalize: true}\n",
    "task arithmetic 0.3": "merge_method: task_arithmetic\nparameters: {weight: 1, lambda: 0.3}\n",
    "task arithmetic 0.7": "merge_method: task_arithmetic\nparameters: {weight: 1, lambda: 0.7}\n",
    "ties": "merge_method: ties\nparameters: {weight: 1, density: 0.2, normalize: true}\n",
    "tsv_m": "merge_method: tsv_m\n",
    "iso_c": "merge_method: iso_c\n",
    "iso_cts": "merge_method: iso_cts\n",
    "knots": "merge_method: knots\n",
    "cart": "merge_method: cart\n",
    "wudi": "merge_method: wudi\n",
    "regmean": "merge_method: regmean\n",
    "regmean++": "merge_method: regmean++\n",
    "projection, one pass": PROJECTION + "parameters: {sequential: false}\n",
    "projection, layer targets": PROJECTION + "parameters: {targets: layer}\n",
    "projection": PROJECTION,
    "projection, prior tsv_m": PROJECTION + STRONG.format(""),
    "projection, prior tsv_m, distilled": PROJECTION + STRONG.format(", distill: 200"),
}
CORE = "merge_method: core_space\nparameters: {{inner: {}}}\n"
PEFT = "merge_method: peft\nparameters: {{combination_type: {}}}\n"
# With --lora alone: they merge the factors of adapters.
ADAPTER_METHODS = {
    **{f"core_space, {inner}": CORE.format(inner) for inner in ("ta", "mean", "ties", "dare_ties", "tsv", "iso_c", "cart")},
    **{f"peft, {kind}": PEFT.format(kind) for kind in ("linear", "svd", "ties", "ties_svd")},
    "core_space, projection": CORE.format("projection"),
    "core_space, projection, prior tsv_m": CORE.format("projection, alpha: 1.3, ridge: 1, ridge_scale: input").replace(
        "\nparam", "\nprior: tsv_m\nparam"
    ),
}
NEEDS_DATA = ("projection", "regmean", "lot")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("suite", type=pathlib.Path)
    arguments.add_argument("--merganser", default="target/release/merganser")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench-suite"))
    arguments.add_argument("--lora", action="store_true")
    arguments.add_argument("--samples", type=int, default=256)
    arguments.add_argument("--only", nargs="*")
    given = arguments.parse_args()
    suite = given.suite.resolve()
    kind = "lora_" if given.lora else "task_"
    tasks = sorted(folder.name.removeprefix(kind) for folder in suite.glob(kind + "*"))
    if not tasks:
        raise SystemExit(f"{suite} has no folder {kind}*")
    text = "image_size" not in json.loads((suite / "base/config.json").read_text())
    model = lambda t: f"{suite}/base+{suite}/lora_{t}" if given.lora else f"{suite}/task_{t}"
    given.out.mkdir(parents=True, exist_ok=True)

    listed = []
    for t in tasks:
        listed.append(
            {
                "name": t,
                "task": "classification",
                "data": {"path": f"{suite}/data/{t}.safetensors", "split": "test"},
                "head": f"{suite}/heads/{t}.safetensors",
                "reference": model(t),
                "unit": text,
                **({"feature": "mean"} if text else {}),
            }
        )
    (given.out / "tasks.json").write_text(json.dumps({"tasks": listed}, indent=1))

    folders, seconds = {}, {}
    for name, head in {**METHODS, **(ADAPTER_METHODS if given.lora else {})}.items():
        if given.only and name not in given.only:
            continue
        method = head.split()[1]
        needs_data = method.startswith(NEEDS_DATA) or "inner: projection" in head
        recipe = head + f"base_model: {suite}/base\nmodels:\n"
        for t in tasks:
            recipe += f"  - model: {model(t)}\n"
            if needs_data:
                recipe += f"    calibration: {suite}/data/{t}.safetensors\n"
        if needs_data:
            recipe += f"calibration: {{prefix: calib, samples: {given.samples}}}\n"
        recipe += "dtype: float32\n"
        slug = "".join(c if c.isalnum() else "_" for c in name)
        path = given.out / f"{slug}.yml"
        path.write_text(recipe)
        folders[name] = given.out / slug
        begun = time.monotonic()
        subprocess.run(
            [given.merganser, "merge", path, folders[name], "--overwrite", "--quiet", "--no-sync"], check=True
        )
        seconds[name] = time.monotonic() - begun

    compared = [flag for folder in folders.values() for flag in ("--compare", folder)]
    found = subprocess.run(
        [given.merganser, "evaluate", suite / "base", "--tasks", given.out / "tasks.json", *compared, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(found.stdout.splitlines()[-1])
    print("| merge | " + " | ".join(tasks) + " | mean | of the fine-tunes | seconds |")
    print("|---" * (len(tasks) + 4) + "|")
    for column, name in enumerate(["base", *folders]):
        scores = [row["scores"][column]["value"] for row in found["tasks"]]
        average = found["averages"][column]
        cells = [f"{score:.3f}" for score in scores]
        mean, normalised = f"{average['value']:.4f}", f"{100 * average['normalised']:.1f} %"
        print(f"| {name} | " + " | ".join(cells) + f" | {mean} | {normalised} | {seconds.get(name, 0):.0f} |")
    averages = [average["value"] for average in found["averages"]]
    scores = [row["reference"]["score"]["value"] for row in found["tasks"]]
    cells = [f"{score:.3f}" for score in scores]
    print("| fine-tunes | " + " | ".join(cells) + f" | {sum(scores) / len(scores):.4f} | 100 % | |")
    if len(folders) > 2:
        rank(given, folders, dict(zip(folders, averages[1:])))


def rank(given, folders, accuracies):
    """Prints how well captured energy, which knows no labels, ranks the merges."""
    recipe = given.out / "projection__one_pass.yml"
    if not recipe.exists():
        return
    compared = [flag for folder in folders.values() for flag in ("--compare", folder)]
    found = subprocess.run(
        [given.merganser, "diagnose", recipe, *compared, "--json"], check=True, capture_output=True, text=True
    )
    methods = {method["name"]: method for method in json.loads(found.stdout.splitlines()[-1])["methods"]}
    print("\n| merge | captured, layer by layer | captured at the output | mean accuracy |\n|---|---|---|---|")
    rows = []
    for name, folder in folders.items():
        method = methods[str(folder)]
        rows.append((method["captured"], method["output"], accuracies[name]))
        print(f"| {name} | {method['captured']:.3f} | {method['output']:.3f} | {accuracies[name]:.4f} |")
    layers, outputs, means = zip(*rows)
    print(
        f"\nSpearman's coefficient with accuracy over {len(rows)} merges: {spearman(layers, means):.2f} layer by layer, "
        f"{spearman(outputs, means):.2f} at the output"
    )


def spearman(xs, ys):
    def ranks(values):
        return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]

    a, b = ranks(xs), ranks(ys)
    mean = (len(a) + 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(a, b))
    squares = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return products / squares**0.5


if __name__ == "__main__":
    main()
