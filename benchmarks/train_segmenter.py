"""Train a small SegFormer from scratch, on masks: the base of ``swap_dense.py``, or with all classes its measure.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, NeurIPS 2021.
Run, with the data cut by ``dense_split.py``::

    python benchmarks/train_segmenter.py --data split/validation --without car,bicyclist -o street-base
    python benchmarks/train_segmenter.py --data split/validation -o street-all
"""

import torch
import torch.nn.functional as F
from dense_training import fed_with, fit, light, parse, read
from torch import Tensor
from transformers import SegformerConfig, SegformerForSemanticSegmentation

HEIGHT, WIDTH = 144, 192
"""Of the input, in pixels: four fifths of the streets' images."""
EPOCHS, BATCH, RATE = 150, 8, 1.5e-3
LARGEST = 1.8
"""Most that a batch is magnified."""
RARE, LEAST = -0.5, 1e-3
"""A class weighs its share of all pixels, but at least ``LEAST``, to this power."""
STRIDE = 4
"""Pixels of the input on a side of each that the network answers for."""


def main() -> None:
    """Train, printing the score now and then, and save."""
    options = parse(__doc__.splitlines()[0], EPOCHS, BATCH, RATE)
    training = read(options.data, options.without, fed_with(HEIGHT, WIDTH))
    model = segmenter(training.classes)
    weights = class_weights(training.targets, len(training.classes))

    def loss_of(pixels: Tensor, targets: Tensor) -> Tensor:
        pixels, rows = vary(pixels, targets)
        scores = model(light(pixels, training.fed, 0.5)).logits.float()
        return F.cross_entropy(scores, rows[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE], weights, ignore_index=-1)

    fit(model, training, options, loss_of)


def segmenter(classes: tuple[str, ...]) -> SegformerForSemanticSegmentation:
    """About two million parameters: four stages of two blocks."""
    config = SegformerConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 128, 192],
        num_attention_heads=[1, 2, 4, 6],
        mlp_ratios=[4, 4, 4, 4],
        sr_ratios=[8, 4, 2, 1],
        decoder_hidden_size=96,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    network = SegformerForSemanticSegmentation(config)
    network.set_attn_implementation("eager")  # the fused kind is slow backwards in bf16 on a CPU
    return network


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """(K,) weights of mean one, larger for what is rare."""
    pixels = torch.bincount(targets[targets >= 0].long(), minlength=classes).float()
    weights = (pixels / pixels.sum()).clamp_min(LEAST) ** RARE
    return weights / weights.mean()


def vary(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A batch mirrored and magnified at random, and its (B, HEIGHT, WIDTH) rows."""
    rows = targets[:, None].float()
    if torch.rand(1) < 0.5:
        pixels, rows = pixels.flip(-1), rows.flip(-1)
    factor = float(1 + torch.rand(1) * (LARGEST - 1))
    size = (round(HEIGHT * factor), round(WIDTH * factor))
    pixels, rows = F.interpolate(pixels, size=size, mode="bilinear"), F.interpolate(rows, size=size, mode="nearest")
    top = int(torch.randint(0, size[0] - HEIGHT + 1, (1,)))
    left = int(torch.randint(0, size[1] - WIDTH + 1, (1,)))
    window = (..., slice(top, top + HEIGHT), slice(left, left + WIDTH))
    return pixels[window], rows[window][:, 0].long()


if __name__ == "__main__":
    main()
