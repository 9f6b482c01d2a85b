"""What the trainers of a small detector and a small segmenter share: data, light, schedule, and the figures."""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kswapctl.data.images import decode, normalise
from kswapctl.data.sets import once
from kswapctl.data.sources import Source, open_source
from kswapctl.data.splits import test_part, training_part
from kswapctl.evaluation.predict import answer
from kswapctl.models.building import build
from kswapctl.models.checkpoint import Description, load
from kswapctl.runtime import pick_precision, seed_everything
from kswapctl.spec import Preprocessing
from kswapctl.tasks import TASKS

WARM_UP = 100
"""Steps in which the learning rate rises; then it falls to zero along a cosine."""
REPORTS = 3
"""How often the score is printed, and the network saved."""


@dataclass(frozen=True)
class Training:
    """Images of the training part, with the targets of the classes to know."""

    fed: Preprocessing
    classes: tuple[str, ...]
    pixels: Tensor
    """(N, 3, H, W) uint8, as ``fed`` says."""
    targets: Tensor
    """As the task has them."""

    def batches(self, epochs: int, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Epoch, pixels in [0, 255] and targets of one batch of ``size`` images after another, shuffled each epoch."""
        for epoch in range(epochs):
            order = torch.randperm(len(self.pixels))
            for chosen in order[: len(order) // size * size].split(size):
                yield epoch, self.pixels[chosen].float(), self.targets[chosen].clone()

    def steps(self, epochs: int, size: int) -> int:
        """Batches in so many epochs."""
        return epochs * (len(self.pixels) // size)


def parse(description: str, epochs: int, batch: int, rate: float) -> argparse.Namespace:
    """The options that both trainers have; ``rate`` is the highest learning rate of AdamW."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True)
    parser.add_argument("--without", default="", help="classes to leave out, separated by commas")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    seed_everything(options.seed)
    return options


def fed_with(height: int, width: int) -> Preprocessing:
    """Images stretched to this size, in pixels, and normalised as ImageNet's."""
    return Preprocessing(
        (3, height, width), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", crop_mode="squash"
    )


def read(data: str, without: str, fed: Preprocessing) -> Training:
    """The training part of ``data``, on which what is left out counts for nothing."""
    source = open_source(data)
    classes = tuple(c for c in source.classes if c not in without.split(","))
    images = decode(source, once(source, training_part(source, source.classes)), fed)
    return Training(fed, classes, images.pixels, images.targets(classes))


def light(pixels: Tensor, fed: Preprocessing, strength: float) -> Tensor:
    """Normalised (B, 3, H, W), each image with another contrast and each channel with another brightness."""
    count = len(pixels)
    contrast = 1 + (torch.rand(count, 1, 1, 1) - 0.5) * strength
    return normalise(pixels, fed) * contrast + (torch.rand(count, 3, 1, 1) - 0.5) * strength


def fit(
    model: Any, training: Training, options: argparse.Namespace, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Train ``model`` by AdamW, print how it fares, and save it with its preprocessing to ``options.output``."""
    optimiser = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=1e-2, fused=True)
    steps = training.steps(options.epochs, options.batch)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))

    dtype = pick_precision("auto", torch.device("cpu"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    model.train()
    for step, (epoch, pixels, targets) in enumerate(training.batches(options.epochs, options.batch), start=1):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = loss_of(pixels, targets)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % -(-steps // REPORTS) == 0 or step == steps:
            save(model, training.fed, options.output)
            said = ", ".join(f"{name} {value:.3f}" for name, value in scores(options.output, options.data).items())
            print(f"epoch {epoch + 1} of {options.epochs}, loss {loss.item():.2f}; {said}", flush=True)


def save(model: Any, fed: Preprocessing, folder: Path) -> None:
    """Weights, configuration and preprocessing, as transformers keeps them."""
    model.save_pretrained(folder)
    height, width = fed.input_size[1:]
    said = {"image_mean": fed.mean, "image_std": fed.std, "size": {"height": height, "width": width}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def scores(model: Path, data: str) -> dict[str, float]:
    """On the test part: the task's scores over all classes that the saved ``model`` knows, and one by class."""
    checkpoint = load(str(model), Description())
    spec, task, source = checkpoint.spec, TASKS[checkpoint.spec.task], open_source(data)
    images = decode(source, test_images(source), spec.preprocessing)
    answers = answer(task, build(spec, checkpoint.weights), images.pixels, spec.preprocessing)
    measured = task.measure(answers, images.targets(spec.classes), len(spec.classes), [])
    each = {name: measured.score([row])[task.metric] for row, name in enumerate(spec.classes)}
    return measured.score(range(len(spec.classes))) | each


def test_images(source: Source) -> list[Any]:
    """Each image of the test part once."""
    return once(source, test_part(source, source.classes))
