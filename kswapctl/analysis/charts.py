"""Charts, each as PNG, SVG and the numbers behind it as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kswapctl.analysis.layers import Profile

FORMATS = ("png", "svg")
COLOURS = {"retain": "#1f6feb", "learned": "#1a7f37", "forgotten": "#b42318", "forgotten earlier": "#d98e04"}
MARKERS = "osD^vP*X<>hd"


def plainly(legend: Any) -> None:
    """Show the names of a legend as they are: a dollar sign begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


@contextmanager
def figure(folder: Path, name: str, numbers: object, size: tuple[float, float], panels: int = 1) -> Iterator[Any]:
    """Yield the axes of a figure; it is then written to ``folder`` as ``name`` in every format, with its numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, panels, figsize=size, squeeze=False)
    try:
        yield axes[0]
        drawn.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in FORMATS:
            drawn.savefig(folder / f"{name}.{suffix}", dpi=130)
        (folder / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    finally:
        pyplot.close(drawn)


def draw_layers(folder: Path, profiles: Sequence[Profile]) -> None:
    """``layers``: weight change and starting gradient of each operation, block by block, in the network's order."""
    blocks = list(dict.fromkeys(b for p in profiles for b in p.blocks))
    numbers = [vars(p) for p in profiles]
    with figure(folder, "layers", numbers, (max(8.0, 0.7 * len(blocks) + 3), 3.8), 2) as (left, right):
        for index, profile in enumerate(profiles):
            style = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.2, "label": profile.name}
            left.plot(range(len(blocks)), [100 * c for c in profile.change], **style)
            right.plot(range(len(blocks)), profile.gradient or [math.nan] * len(blocks), **style)
        left.set(ylabel="weight change, % of the block's norm", ylim=(0, None))
        right.set(ylabel="mean absolute gradient before", yscale="log")
        for axis in (left, right):
            axis.set_xticks(range(len(blocks)), [b.rpartition(".")[2] for b in blocks], fontsize=7)
            axis.set_xlabel("block, from the image to the classifier")
            axis.grid(alpha=0.3)
        left.legend(fontsize=7)


def draw_sequence(
    folder: Path, title: str, names: Sequence[str], accuracies: Mapping[str, Sequence[float | None]], metric: str
) -> None:
    """``title``: the ``metric`` of each set after each operation; gaps where a set was not known yet."""
    numbers = {"versions": list(names), metric: {k: list(v) for k, v in accuracies.items()}}
    with figure(folder, title, numbers, (max(5.0, 0.9 * len(names) + 2), 3.6)) as (axis,):
        for index, (name, values) in enumerate(accuracies.items()):
            shown = [float("nan") if v is None else 100 * v for v in values]
            axis.plot(
                range(len(names)), shown, marker=MARKERS[index], color=COLOURS.get(name), label=name, markersize=5
            )
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=20 if len(names) > 6 else 0)
        axis.set(ylim=(-3, 103), ylabel=f"{metric} on test, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)


def draw_trade_off(folder: Path, title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """``trade-off``: accuracy on what is forgotten against what is retained, a point a method, with its deviation.

    A point has ``method``, ``Acc_f`` and ``Acc_r``, each of the latter as (mean, deviation) in percent.
    """
    with figure(folder, "trade-off", list(points), (7.6, 4.6)) as (axis,):
        for index, point in enumerate(points):
            (forgotten, spread), (retained, width) = point["Acc_f"], point["Acc_r"]
            marker = MARKERS[(index // 10) % len(MARKERS)]  # colours come round after ten
            axis.errorbar(
                forgotten, retained, width, spread, marker=marker, linestyle="", capsize=2, label=point["method"]
            )
        axis.set(xlabel="accuracy on what is forgotten, % (lower is better)", ylabel="accuracy on what stays, %")
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.grid(alpha=0.3)
        columns = 2 if len(points) > 14 else 1
        plainly(axis.legend(fontsize=7, ncols=columns, loc="center left", bbox_to_anchor=(1.01, 0.5)))
