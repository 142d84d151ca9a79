#!/usr/bin/env python3
"""Measure how often `merganser audit sequence` finds a corrupted update, and how often it raises a false alarm.

    pip install torch numpy scikit-learn safetensors
    python scripts/measure_sequences.py --merganser target/release/merganser

A small convolutional network learns the handwritten digits that scikit-learn ships, and is then updated eight times in a row,
each time on 160 digits it has not seen, drawn with a slant of their own. In every stream the images of one update, the fifth to
the eighth, are corrupted in one of six ways. Each corruption is tried in --seeds streams, with plain fine-tuning and with
distillation of the features of the model before. The program then judges every stream, with and without the training losses.

The table says, for each way of training and of judging: the area under the ROC curve of the score (corrupted updates against
the clean ones of the same streams before them, from the fourth on, the first that is scored); the share of corrupted updates that are flagged at the
program's own threshold of 3, and of clean ones; and the share of corrupted ones above the score that 5 % of the clean exceed.
About ten minutes of one core for the 60 streams of each kind.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

UPDATES, EACH, EPOCHS, BATCH, RATE, KEEP = 8, 160, 12, 32, 2e-3, 10.0


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def slanted(images, angle, scale):
    """Every image turned by an angle and scaled, as one pen or camera would do it to all."""
    c, s = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = torch.tensor([[c, -s, 0], [s, c, 0]], dtype=torch.float32).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(matrix, images.shape, align_corners=False), align_corners=False)


def blurred(images):
    kernel = torch.tensor([1.0, 2, 1])
    kernel = (kernel[:, None] * kernel[None]).div(16)[None, None]
    return F.conv2d(F.conv2d(images, kernel, padding=1), kernel, padding=1)


def speckled(images):
    noise = torch.rand_like(images)
    return images.where(noise > 0.2, (noise * 10 > 1).float())


CORRUPTIONS = {
    "noise": lambda x: (x + 0.35 * torch.randn_like(x)).clamp(0, 1),
    "speckles": speckled,
    "blur": blurred,
    "contrast": lambda x: 0.5 + 0.25 * (x - 0.5),
    "brightness": lambda x: (x + 0.5).clamp(0, 1),
    "pixels": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
}


def train(model, images, labels, epochs, keep=None):
    """Fits the model; returns the mean loss of the last epoch. With `keep` its features stay near those of that model."""
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            features = model[:-1](images[batch])
            loss = F.cross_entropy(model[-1](features), labels[batch])
            total += loss.item() * len(batch) / len(images)
            if keep is not None:
                with torch.no_grad():
                    before = keep[:-1](images[batch])
                loss = loss + KEEP * (features - before).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return total


def stream(seed, corruption, distil, folder):
    """Writes the models of one stream; returns their files, losses, and which update is corrupted."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    bunch = load_digits()
    order = draw.permutation(len(bunch.target))
    images = torch.tensor(bunch.images[order] / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target[order])
    model, files, losses = network(), [], []
    first = len(images) - UPDATES * EACH
    train(model, images[:first], labels[:first], 3 * EPOCHS)
    corrupted = int(draw.integers(4, UPDATES))
    for update in range(-1, UPDATES):
        if update >= 0:
            rows = slice(first + update * EACH, first + (update + 1) * EACH)
            own = slanted(images[rows], draw.uniform(-0.35, 0.35), draw.uniform(0.85, 1.1))
            if update == corrupted:
                own = CORRUPTIONS[corruption](own)
            before = None
            if distil:
                before = network()
                before.load_state_dict(model.state_dict())
            losses.append(train(model, own, labels[rows], EPOCHS, before))
        files.append(folder / f"{update + 1}.safetensors")
        save_file(model.state_dict(), files[-1])
    return files, losses, corrupted


def scores(program, files, losses, folder):
    command = [program, "audit", "sequence", *map(str, files), "--json"]
    if losses is not None:
        (folder / "loss.json").write_text(json.dumps(losses))
        command += ["--loss", str(folder / "loss.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    (audit,) = (event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "audit")
    return [(update["score"]["score"], update["score"]["flagged"]) for update in audit["updates"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merganser", default="target/release/merganser")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| training | judged by | AUROC | flagged, corrupted | flagged, clean | found at 5 % false alarms |")
    print("|---|---|---|---|---|---|")
    for distil in (False, True):
        judged = {False: ([], []), True: ([], [])}
        by_kind = {}
        for number, corruption in enumerate(CORRUPTIONS):
            for seed in range(arguments.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    files, losses, corrupted = stream(1000 * number + seed, corruption, distil, folder)
                    for logged, (bad, good) in judged.items():
                        found = scores(arguments.merganser, files, losses if logged else None, folder)
                        bad.append(found[corrupted])
                        good.extend(found[3:corrupted])
                        if logged:
                            by_kind.setdefault(corruption, []).append(found[corrupted][1])
        for logged, (bad, good) in judged.items():
            b, g = (np.array([score for score, _ in side]) for side in (bad, good))
            auroc = ((b[:, None] > g).mean() + 0.5 * (b[:, None] == g).mean()) if len(g) else float("nan")
            share = lambda side: np.mean([flag for _, flag in side])
            found = (b > np.quantile(g, 0.95)).mean()
            print(
                f"| {'with distillation' if distil else 'plain'} | {'weights and losses' if logged else 'weights'} "
                f"| {auroc:.2f} | {share(bad):.0%} of {len(bad)} | {share(good):.0%} of {len(good)} | {found:.0%} |",
                flush=True,
            )
        kinds = ", ".join(f"{kind} {np.mean(flags):.0%}" for kind, flags in by_kind.items())
        print(f"<!-- flagged by weights and losses: {kinds} -->", flush=True)


if __name__ == "__main__":
    main()
