"""Train the honest answer to forgetting: the same network from scratch, without the forgotten classes.

An audit holds a model against it (``kswapctl audit --reference FILE``). It has the base's architecture and input, and
sees the training part of the data. Run, with the data unpacked::

    python benchmarks/train_retrained.py --base signs38.safetensors --data signs43 -o retrained.safetensors
"""

import argparse
from pathlib import Path

import torch
from swap_signs import FORGET
from torch import nn

from kswapctl.data.images import Images, decode, normalise
from kswapctl.data.sources import open_source
from kswapctl.data.splits import test_part, training_part
from kswapctl.data.views import vary
from kswapctl.models.building import build
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.weights import write
from kswapctl.runtime import pick_device, pick_precision, seed_everything
from kswapctl.spec import ModelSpec

BATCH = 64
RATE, WARM_UP, LONGEST = 1e-3, 0.1, 1.0
"""Highest learning rate, share of the steps in which it rises, and longest gradient: without the last two a small
transformer of this depth stays at chance."""
STRENGTH = 0.5
"""Of the variants: few epochs do not suffice for stronger ones."""


def main() -> None:
    """Train, print the test accuracy, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--without", default=",".join(FORGET), help="classes to leave out, separated by commas")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    spec = without(load(options.base, Description()).spec, options.without.split(","))
    model = train(spec, options.data, options.epochs, options.seed, options.device)
    source = open_source(options.data)
    test = decode(source, test_part(source, spec.classes), spec.preprocessing)
    print(f"test accuracy {accuracy(model, test, spec):.1%} on {len(test)} images of {len(spec.classes)} classes")
    write(model.state_dict(), options.output, spec.to_json())


def without(spec: ModelSpec, classes: list[str]) -> ModelSpec:
    """The same network without rows for ``classes``."""
    kept = tuple(c for c in spec.classes if c not in classes)
    return ModelSpec(spec.architecture, spec.arguments, kept, spec.preprocessing, spec.task)


def train(spec: ModelSpec, data: str, epochs: int, seed: int, device: str = "cpu") -> nn.Module:
    """A network of ``spec`` trained from scratch on the training part of its classes; in eval mode, on the CPU."""
    generator = seed_everything(seed)
    source = open_source(data)
    images = decode(source, training_part(source, spec.classes), spec.preprocessing)
    targets = images.targets(spec.classes)
    where = pick_device(device)
    dtype = pick_precision("auto", where)
    model = build(spec).to(where).train()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", where.type == "cuda")  # noqa: B010 - plain is faster on a CPU
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=WARM_UP, cycle_momentum=False)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            varied = vary(images.pixels[batch].float() / 255, generator, STRENGTH) * 255
            with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
                outputs = model(normalise(varied.to(where), spec.preprocessing))
            loss = nn.functional.cross_entropy(outputs.float(), targets[batch].to(where), label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LONGEST)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch) / len(images)
        print(f"epoch {epoch + 1} of {epochs}, mean loss {total:.3f}", flush=True)
    return model.eval().cpu()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, spec: ModelSpec) -> float:
    """Share of ``images`` that ``model`` names rightly."""
    answers = torch.cat([model(normalise(p, spec.preprocessing)).argmax(1) for p in images.pixels.split(128)])
    return float((answers == images.targets(spec.classes)).float().mean())


if __name__ == "__main__":
    main()
