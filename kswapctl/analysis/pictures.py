"""Sample images with what two versions say of them, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kswapctl.data.images import Images


def pick_samples(images: Images, groups: Sequence[tuple[str, Sequence[str]]], each: int) -> list[tuple[str, int]]:
    """Up to ``each`` images of every class in ``groups`` (title, classes), as (title, index)."""
    picks = []
    for title, classes in groups:
        for name in classes:
            own = [i for i, s in enumerate(images.samples) if s.label == name]
            picks += [(title, i) for i in own[:each]]
    return picks


def draw_before_after(
    path: Path,
    images: Images,
    picks: Sequence[tuple[str, int]],
    before: tuple[Tensor, Sequence[str]],
    after: tuple[Tensor, Sequence[str]],
) -> None:
    """Draw each picked image with its name, and the answer and confidence of two versions, to a PNG or SVG.

    ``before`` and ``after`` are (N, K) logits with the classifier's class names; right answers are green.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(8, len(picks))
    rows = -(-len(picks) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(1.5 * columns, 2.25 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, index) in zip(axes.flat, picks, strict=False):
        label = images.samples[index].label
        axis.imshow(images.pixels[index].permute(1, 2, 0).numpy())
        axis.set_title(f"{label}\n({title})", fontsize=8)
        for line, (name, (outputs, classes)) in enumerate((("before", before), ("after", after))):
            share, answer = torch.softmax(outputs[index], dim=0).max(dim=0)
            said = classes[int(answer)]
            colour = "#1a7f37" if said == label else "#b42318"
            text = f"{name}: {said} {share:.0%}"
            axis.text(
                0.5,
                -0.08 - 0.16 * line,
                text,
                transform=axis.transAxes,
                ha="center",
                va="top",
                fontsize=7,
                color=colour,
            )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
