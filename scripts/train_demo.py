#!/usr/bin/env python3
"""Train the models of `examples/demo/`: a base, one fine-tune for each of four tasks, and the images to merge and judge them with.

    pip install torch numpy scikit-learn safetensors
    python scripts/train_demo.py                     # writes examples/demo/
    python scripts/train_demo.py --out elsewhere/ --jobs 2

Everything comes from the 1,797 handwritten digits that scikit-learn ships (8x8 pixels, UCI Optical Recognition of Handwritten
Digits, CC BY 4.0); nothing is downloaded. The base, a vision transformer, learns to read one upright digit and two side by side.
For each task a linear head is then fitted to the features of the base and frozen, and the whole encoder is fine-tuned under it.
All fine-tunes have the same steps, rate and batch; no setting is chosen for one task or for one way of merging.

Takes about eleven minutes of one core; --jobs 2 trains two fine-tunes at a time. Every model trains on one thread with a fixed
seed: one machine gives the same files every time, for any --jobs. Another processor or version of torch sums in another order
and ends a point or two elsewhere. Test accuracies to expect (float32, weights rounded to f16):

                turned   sum   larger  difference   mean
    base         .920   .290    .686      .202      .525
    fine-tune    .996   .982    .974      .930      .970
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import struct
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIDE, PATCH, HIDDEN, MLP, LAYERS, HEADS, EPS = 16, 4, 96, 384, 4, 4, 1e-12
CLASSES, TEST, CALIB = 10, 500, 256
BASE_STEPS, BASE_RATE, TASK_STEPS, TASK_RATE, BATCH = 1200, 2e-3, 900, 1e-3, 128
SEED = 7

# --- Images: [N,16,16] in 0..1, ink is 1 -----------------------------------------------------------------------------------


def digits():
    """Training and test digits, (images [N,8,8], labels [N]) each; no drawing is in both."""
    bunch = load_digits()
    order = np.random.default_rng(SEED).permutation(len(bunch.target))
    images = torch.tensor(bunch.images[order] / 16, dtype=torch.float32)
    labels = torch.tensor(bunch.target[order])
    return (images[TEST:], labels[TEST:]), (images[:TEST], labels[:TEST])


def drawn(images, size, jitter):
    """Digits [N,8,8] on squares of `size` pixels; with jitter each is turned, scaled and moved a little."""
    n = len(images)
    spread = lambda *shape: (torch.rand(*shape) * 2 - 1) * float(jitter)
    angle, scale, shift = spread(n) * 0.2, 1 + spread(n) * 0.12, spread(n, 2) * 0.15
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, (n, 1, size, size), align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def single(source, picks, jitter):
    """The first picked digit of each image, filling it; its label."""
    images, labels = source
    return drawn(images[picks[0]], SIDE, jitter), labels[picks[0]]


def pair(source, picks, jitter, corners):
    """Two digits of half the size, their upper left corners at `corners` (row, column); both labels."""
    images, labels = source
    half = SIDE // 2
    canvas = torch.zeros(len(picks[0]), SIDE, SIDE)
    for pick, (row, column) in zip(picks, corners):
        canvas[:, row : row + half, column : column + half] = drawn(images[pick], half, jitter)
    return canvas, labels[picks[0]], labels[picks[1]]


def upright_pair(source, picks, jitter):
    return pair(source, picks, jitter, [(4, 0), (4, 8)])


def turned(source, picks, jitter):
    canvas, label = single(source, picks, jitter)
    return canvas.rot90(1, (1, 2)), label


def last_digit_of_sum(source, picks, jitter):
    canvas, left, right = upright_pair(source, picks, jitter)
    return canvas, (left + right) % 10


def larger(source, picks, jitter):
    canvas, upper, lower = pair(source, picks, jitter, [(0, 4), (8, 4)])
    return canvas, torch.maximum(upper, lower)


def difference(source, picks, jitter):
    canvas, first, second = pair(source, picks, jitter, [(0, 0), (8, 8)])
    return 1 - canvas, (first - second).abs()


TASKS = {
    "turned": (turned, "one digit lying on its side: which is it?"),
    "sum": (last_digit_of_sum, "two digits side by side: the last digit of their sum"),
    "larger": (larger, "two digits, one above the other: the larger one"),
    "difference": (difference, "two digits corner to corner, dark on light: how far apart are they?"),
}


def training_batch(task, source, count):
    picks = torch.randint(len(source[0]), (2, count))
    return task(source, picks, jitter=True)


def to_bytes(images):
    return (images * 255).round().to(torch.uint8)[..., None].contiguous()


def samples(task, train, test):
    """What is published of a task, u8 [N,16,16,1]: unlabelled images of training digits to calibrate with, and labelled images in
    which every test digit comes once (in pairs, once in each place).
    """
    calib, _ = task(train, torch.randint(len(train[0]), (2, CALIB)), jitter=False)
    images, labels = task(test, torch.stack([torch.randperm(TEST) for _ in range(2)]), jitter=False)
    return {"calib.pixels": to_bytes(calib), "test.pixels": to_bytes(images), "test.labels": labels.long()}


# --- The network, its tensors named as in Hugging Face checkpoints --------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        square = lambda: nn.Linear(HIDDEN, HIDDEN)
        projections = nn.ModuleDict({"query": square(), "key": square(), "value": square()})
        self.attention = nn.ModuleDict({"attention": projections, "output": nn.ModuleDict({"dense": square()})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(HIDDEN, MLP)})
        self.output = nn.ModuleDict({"dense": nn.Linear(MLP, HIDDEN)})
        self.layernorm_before = nn.LayerNorm(HIDDEN, eps=EPS)
        self.layernorm_after = nn.LayerNorm(HIDDEN, eps=EPS)

    def forward(self, x):
        split = lambda name: self.attention["attention"][name](normed).unflatten(2, (HEADS, -1)).transpose(1, 2)
        normed = self.layernorm_before(x)
        mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"))
        x = x + self.attention["output"]["dense"](mixed.transpose(1, 2).flatten(2))
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, HIDDEN) * 0.02)
        self.position_embeddings = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, HIDDEN) * 0.02)
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(1, HIDDEN, PATCH, PATCH)})

    def forward(self, images):
        patches = self.patch_embeddings["projection"]((images[:, None] - 0.5) / 0.5).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.position_embeddings


class Encoder(nn.Module):
    """Images [N,16,16] to features [N,HIDDEN]: the class token after the last normalisation."""

    def __init__(self):
        super().__init__()
        blocks = nn.ModuleDict({"layer": nn.ModuleList(Block() for _ in range(LAYERS))})
        self.vit = nn.ModuleDict(
            {"embeddings": Embeddings(), "encoder": blocks, "layernorm": nn.LayerNorm(HIDDEN, eps=EPS)}
        )

    def forward(self, images):
        x = self.vit["embeddings"](images)
        for block in self.vit["encoder"]["layer"]:
            x = block(x)
        return self.vit["layernorm"](x)[:, 0]


CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "attention_probs_dropout_prob": 0.0,
    "dtype": "float16",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": HIDDEN,
    "image_size": SIDE,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "layer_norm_eps": EPS,
    "model_type": "vit",
    "num_attention_heads": HEADS,
    "num_channels": 1,
    "num_hidden_layers": LAYERS,
    "patch_size": PATCH,
    "qkv_bias": True,
}
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": False,
    "size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
}


def halved(tensors):
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def write_model(folder, encoder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halved(encoder.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def read_model(folder):
    encoder = Encoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return encoder


# --- Training -------------------------------------------------------------------------------------------------------------


def train(name, parameters, loss, steps, rate):
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    for step in range(1, steps + 1):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {value.item():.3f}", flush=True)


def train_base(out):
    """The base reads one digit or two: three linear heads, thrown away afterwards."""
    prepare(0)
    source, _ = digits()
    encoder, heads = Encoder(), nn.ModuleList(nn.Linear(HIDDEN, CLASSES) for _ in range(3))

    def loss():
        alone, label = training_batch(single, source, BATCH // 2)
        both, left, right = training_batch(upright_pair, source, BATCH // 2)
        one, two = encoder(torch.cat([alone, both])).split(BATCH // 2)
        return sum(F.cross_entropy(h(x), y) for h, x, y in zip(heads, (one, two, two), (label, left, right)))

    train("base", [*encoder.parameters(), *heads.parameters()], loss, BASE_STEPS, BASE_RATE)
    write_model(out / "base", encoder)


def fitted_head(encoder, task, source):
    """Logistic regression on the features of the base, rounded to f16 as it will be published."""
    with torch.no_grad():
        images, labels = training_batch(task, source, 4096)
        features = encoder(images)
    head = nn.Linear(HIDDEN, CLASSES)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(300):
        loss = F.cross_entropy(head(features), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return halved({f"classifier.{name}": tensor for name, tensor in head.state_dict().items()})


def train_task(out, name):
    """Head, fine-tune and samples of one task; its test accuracies with the encoder of the base and with its own."""
    prepare(1 + list(TASKS).index(name))
    task, _ = TASKS[name]
    source, test = digits()
    encoder = read_model(out / "base")
    head = fitted_head(encoder, task, source)
    weight, bias = head["classifier.weight"].float(), head["classifier.bias"].float()

    def loss():
        images, labels = training_batch(task, source, BATCH)
        return F.cross_entropy(F.linear(encoder(images), weight, bias), labels)

    train(name, encoder.parameters(), loss, TASK_STEPS, TASK_RATE)
    prepare(100 + list(TASKS).index(name))  # of their own, so that the samples do not hang on how long was trained
    data = samples(task, source, test)
    write_model(out / "tasks" / name, encoder)
    for folder, tensors in (("heads", head), ("data", data)):
        (out / folder).mkdir(exist_ok=True)
        save_file(tensors, out / folder / f"{name}.safetensors", metadata={"format": "pt"})
    return [accuracy(read_model(out / model), head, data) for model in ("base", f"tasks/{name}")]


@torch.no_grad()
def accuracy(encoder, head, data):
    features = encoder(data["test.pixels"][..., 0].float() / 255)
    logits = F.linear(features, head["classifier.weight"].float(), head["classifier.bias"].float())
    return (logits.argmax(1) == data["test.labels"]).float().mean().item()


def prepare(seed):
    """Seeds one stage. One thread: with more, the order of sums, and so the last bits, would follow the machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED * 100 + seed)


# --- What goes with the models --------------------------------------------------------------------------------------------


def write_png(path, grey):
    """A grey picture, u8 [H,W]."""
    height, width = grey.shape
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_picture(out):
    """A row of test images for each task, four times their size."""
    rows = []
    for name in TASKS:
        images = load_file(out / "data" / f"{name}.safetensors")["test.pixels"][:10, ..., 0]
        images = images.repeat_interleave(4, 1).repeat_interleave(4, 2)
        rows.append(torch.cat([F.pad(image, (3, 3, 3, 3), value=128) for image in images], 1))
    write_png(out / "tasks.png", torch.cat(rows))


def write_index(out, accuracies):
    tasks = [
        {"name": name, "question": TASKS[name][1], "accuracy": {"base": round(base, 4), "fine_tune": round(own, 4)}}
        for name, (base, own) in accuracies.items()
    ]
    (out / "demo.json").write_text(json.dumps({"tasks": tasks}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "examples" / "demo")
    parser.add_argument("--jobs", type=int, default=1, help="fine-tunes trained at a time, a thread each")
    arguments = parser.parse_args()
    train_base(arguments.out)
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        accuracies = dict(zip(TASKS, pool.map(train_task, [arguments.out] * len(TASKS), TASKS)))
    write_picture(arguments.out)
    write_index(arguments.out, accuracies)
    for name, (base, own) in accuracies.items():
        print(f"{name:12} base {base:.3f}  fine-tune {own:.3f}")


if __name__ == "__main__":
    main()
