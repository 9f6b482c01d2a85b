"""The page of figures: how fast each model learns the forgotten again, and what each attack recovers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kswapctl.audit.protocol import Curves
from kswapctl.audit.verdict import Measure

COLOURS = {"original": "#b42318", "head-masked": "#f2c14e", "audited": "#1f6feb", "reference": "#1a7f37"}
DASHES = {"head-masked": (0, (4, 3))}
"""Its curve often lies on the original's."""


def draw_audit(path: Path, title: str, measures: Sequence[Measure], curves: Curves) -> None:
    """Draw one panel an attack that trains, and the recovery indices, to a PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves) + 1, figsize=(4.6 * (len(curves) + 1), 3.8), squeeze=False)
    for axis, (attack, by_model) in zip(axes[0], curves.items(), strict=False):
        for name in sorted(by_model, key=[*COLOURS].index):
            curve, look = by_model[name], {"color": COLOURS[name], "linestyle": DASHES.get(name, "-")}
            axis.plot(curve.steps, curve.forgotten, marker="o", markersize=3, label=name, **look)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(0, by_model["original"].steps[-1])
        axis.set(ylim=(-0.02, 1.02), xlabel="steps", ylabel="accuracy on forgotten test images")
        axis.set_title(f"learning again: {attack}", fontsize=9)
        axis.legend(fontsize=7)
    _draw_indices(axes[0][-1], measures)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None} if path.suffix == ".png" else None)
    pyplot.close(figure)


def _draw_indices(axis: object, measures: Sequence[Measure]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    shown = [m for m in measures if m.id[:2] in {"M4", "M5", "M6"} and m.value is not None]
    if not shown:
        axis.axis("off")
        axis.text(0.5, 0.5, "no attack could be compared\nwith a reference", ha="center", fontsize=9)
        return
    for row, measure in enumerate(shown):
        value, low, high = (v or 0.0 for v in (measure.value, measure.low, measure.high))
        axis.plot([low, high], [row, row], color=COLOURS["audited"], linewidth=1.5)
        axis.plot([value], [row], "o", color=COLOURS["audited"], fillstyle="full" if measure.votes else "none")
    axis.set_yticks(range(len(shown)), [m.id for m in shown], fontsize=7)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5))
    axis.set_xlabel("recovery index (0 like the reference, 1 like the original)", fontsize=8)
    axis.set_title("what attacks recover (hollow: does not vote)", fontsize=9)
