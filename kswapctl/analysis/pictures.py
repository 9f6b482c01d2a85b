"""Sample images with what is marked on them, and what two versions answer, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kswapctl.analysis.charts import plainly
from kswapctl.tasks import Shown

COVER = 0.55
"""Opacity of a mask over its image."""
WIDTH, NARROW, TITLE, LEGEND = 2.6, 1.9, 0.3, 0.3
"""Inches: width of a panel, and of one with nothing but a label; height of the line over it, and of the legend's."""
PALETTES = {10: "tab10", 20: "tab20"}
"""Of matplotlib, by the number of classes that each tells apart."""


@dataclass(frozen=True)
class Pick:
    """An image chosen to show a class."""

    title: str
    """Set that the class is of."""
    name: str
    """The class."""
    index: int
    """Number of the image."""


@dataclass(frozen=True)
class Column:
    """What is drawn over each of the picked images, one under another."""

    heading: str
    names: Sequence[str]
    """Classes by row."""
    shown: Sequence[Shown]

    def describe(self, line: int) -> dict[str, float]:
        """Class to what :meth:`Shown.amounts` says of it."""
        return {self.names[row]: round(amount, 4) for row, amount in self.shown[line].amounts().items()}

    def phrases(self, line: int) -> list[str]:
        """Every class with what there is of it, the most first."""
        return [self.shown[line].phrase(row, self.names[row]) for row in self.shown[line].amounts()]


def pick_samples(
    truth: Sequence[Shown], groups: Sequence[tuple[str, Sequence[str]]], rows: Mapping[str, int], each: int
) -> list[Pick]:
    """Up to ``each`` images of every class in ``groups`` (title, classes): those with the most of it, no image twice.

    ``rows`` tells which row of ``truth`` a class has.
    """
    amounts = [shown.amounts() for shown in truth]
    picks: list[Pick] = []
    taken: set[int] = set()
    for title, classes in groups:
        for name in classes:
            having = [(-a[rows[name]], i) for i, a in enumerate(amounts) if rows[name] in a and i not in taken]
            chosen = [index for _, index in sorted(having)[:each]]
            taken.update(chosen)
            picks += [Pick(title, name, index) for index in chosen]
    return picks


def draw_side_by_side(path: Path, picks: Sequence[Pick], pixels: Tensor, columns: Sequence[Column]) -> None:
    """Draw a line of panels for each of P picks, one for each column, to a PNG or SVG.

    ``pixels`` is (P, C, H, W) uint8, the picked images in the picks' order, as is what the columns show.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    labelled = all(shown.label for column in columns for shown in column.shown)
    there = sorted({name for column in columns for line in range(len(picks)) for name in column.describe(line)})
    size = min((s for s in PALETTES if s >= len(there)), default=max(PALETTES))
    colours = {name: pyplot.get_cmap(PALETTES[size])(index % size)[:3] for index, name in enumerate(there)}
    across, width = (2, NARROW) if labelled else (1, WIDTH)
    panels, lines = across * len(columns), -(-len(picks) // across)
    keys = 0.0 if labelled else LEGEND * -(-len(there) // (2 * len(columns)))
    high = (width * pixels.shape[2] / pixels.shape[3] + TITLE) * lines + keys
    figure, axes = pyplot.subplots(lines, panels, figsize=(width * panels, high), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, axis in enumerate(axes.flat[: len(picks) * len(columns)]):
        line, column = index // len(columns), columns[index % len(columns)]
        axis.imshow(pixels[line].permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
        _draw(axis, column.shown[line], [colours.get(name, ()) for name in column.names])
        axis.set_title(_heading(column, line, picks[line]), fontsize=7, parse_math=False)
    if not labelled:
        marked = [patches.Patch(color=colour, label=name) for name, colour in colours.items()]
        legend = figure.legend(handles=marked, loc="lower center", ncols=2 * len(columns), fontsize=7, frameon=False)
        plainly(legend)
    figure.tight_layout(rect=(0, keys / high, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _heading(column: Column, line: int, pick: Pick) -> str:
    shown = column.shown[line]
    row = list(column.names).index(pick.name) if pick.name in column.names else -1
    return f"{column.heading}: {column.phrases(line)[0] if shown.label else shown.phrase(row, pick.name)}"


def _draw(axis: Any, shown: Shown, colours: Sequence[tuple[float, ...]]) -> None:
    from matplotlib import patches

    high, wide = axis.get_images()[0].get_array().shape[:2]
    if shown.pixels is not None:
        cover = np.zeros((high, wide, 4))
        for row in shown.amounts():
            cover[(shown.pixels == row).numpy()] = (*colours[row], COVER)
        axis.imshow(cover)
    for row, _, left, top, right, bottom in [] if shown.boxes is None else shown.boxes.tolist():
        corner, size = (left * wide, top * high), ((right - left) * wide, (bottom - top) * high)
        axis.add_patch(patches.Rectangle(corner, *size, fill=False, linewidth=1.2, edgecolor=colours[int(row)]))
