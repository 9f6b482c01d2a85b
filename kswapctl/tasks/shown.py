"""What can be drawn of one image: what is marked on it, or what a network answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """One label, or boxes, or pixels; each is given by its row of the classifier, and a mark has the score one."""

    label: tuple[int, float] | None = None
    """Row and score in [0, 1]."""
    boxes: Tensor | None = None
    """(A, 6): row, score in [0, 1], two corners in [0, 1]."""
    pixels: Tensor | None = None
    """(H, W) rows, -1 where a pixel counts for nothing."""

    def amounts(self) -> dict[int, float]:
        """Row to the score of its label, the number of its boxes, or its share of the pixels; the largest first."""
        if self.label is not None:
            return dict([self.label])
        rows = self.pixels if self.pixels is not None else self.boxes[:, 0] if self.boxes is not None else None
        assert rows is not None
        found, counts = rows[rows >= 0].unique(return_counts=True)
        scale = rows.numel() if self.pixels is not None else 1
        amounts = {int(row): int(count) / scale for row, count in zip(found, counts, strict=True)}
        return dict(sorted(amounts.items(), key=lambda item: -item[1]))

    def phrase(self, row: int, name: str) -> str:
        """``name`` with what :meth:`amounts` has of ``row``: ``2 car``, ``road 31%``; a mark's label stands alone."""
        amount = self.amounts().get(row, 0)
        if self.boxes is not None:
            return f"{amount:.0f} {name}"
        return name if self.label is not None and amount == 1 else f"{name} {amount:.0%}"
