"""Segmentation: a class for each pixel; an item is a pixel at the resolution of the network's answer.

Networks that answer with masks and their classes (Mask2Former) are brought to scores per pixel before they come here,
so forgetting pushes down the forgotten class in either kind and no mask is ever made worse on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kswapctl.tasks.base import Alignment, Items, Marks, select
from kswapctl.tasks.shown import Shown

PIXELS = 256
"""Pixels of an image that training looks at in each of its views."""
VOID = -1
"""Target of a pixel that counts for nothing."""


class Segmentation:
    """(B, h, w, K) scores against (B, H, W) rows, -1 where a pixel does not count."""

    name = "segmentation"
    marks: Marks = "masks"
    audited = False
    metric = "mIoU"
    spare = 0
    answered = "(N, h, w, K) scores of the pixels of a smaller image"
    share = 0.125
    rarity = 2.5
    pace = 4

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) cross-entropies of pixels in nats."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) booleans: the pixel's best class is its own."""
        return outputs.argmax(dim=-1) == targets

    def chance(self, classes: int) -> float:
        """Ln K, the cross-entropy of a uniform guess, in nats."""
        return math.log(classes)

    def truth(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """(N, PIXELS, 2) of (N, H, W) targets: the row of a pixel and its place in the (h, w) answer; row -1 for none.

        Pixels are drawn with weight one over the root of their class's area in the image, which keeps small things
        in sight; the draw depends on the targets only.
        """
        height, width = outputs.shape[1:3]
        small = F.interpolate(targets[:, None].float(), size=(height, width), mode="nearest-exact")[:, 0].long()
        generator = torch.Generator().manual_seed(height * width)
        return torch.stack([_draw(image.flatten(), generator) for image in small])

    def known(self, outputs: Tensor, rows: int) -> Tensor:
        """The first columns."""
        return outputs[..., :rows]

    def items(self, features: Tensor, outputs: Tensor, truth: Tensor) -> Items:
        """The drawn pixels."""
        places = truth[..., 1, None]  # (B, S, 1)
        features, outputs = (t.flatten(1, 2).gather(1, places.expand(-1, -1, t.shape[-1])) for t in (features, outputs))
        return Items(features, outputs, truth[..., 0])

    def aside(self, outputs: Tensor, truth: Tensor, gone: Tensor) -> None:
        """Nothing: the pixels' classes are all there is."""

    def answers(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W) rows, from scores enlarged to the input's size."""
        scores = F.interpolate(outputs.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
        return scores.argmax(dim=1).to(torch.int16)

    def renamed(self, answers: Tensor, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows.to(answers.dtype)[answers.long()]

    def measure(self, answers: Tensor, targets: Tensor, rows: int, gone: Sequence[int]) -> Overlap:
        """Intersection over union, over all images together."""
        there = targets != VOID
        pairs = targets[there].long() * rows + answers[there].long()
        confusion = torch.bincount(pairs, minlength=rows * rows).view(rows, rows)
        return Overlap(confusion, targets, tuple(gone))

    def aligned(self, outputs: Tensor, others: Tensor) -> Alignment:
        """All scores."""
        return Alignment(outputs.flatten(0, 2), others.flatten(0, 2))

    def show(self, outputs: Tensor, size: tuple[int, int]) -> list[Shown]:
        """The best class of each pixel."""
        return [Shown(pixels=rows) for rows in self.answers(outputs, size)]

    def show_truth(self, targets: Tensor) -> list[Shown]:
        """The masks."""
        return [Shown(pixels=rows) for rows in targets]


@dataclass(frozen=True)
class Overlap:
    """Pixels by true and answered row."""

    confusion: Tensor
    """(K, K), true row first."""
    targets: Tensor
    """(N, H, W) rows."""
    gone: tuple[int, ...]
    """Rows whose pixels have no right answer any more: they count in their own score only."""

    def count(self, row: int) -> int:
        """Images that have a pixel of the class."""
        return self.images([row])

    def images(self, rows: Sequence[int]) -> int:
        """Images that have a pixel of one of the classes."""
        return int(select(self.targets, rows).flatten(1).any(1).sum())

    def score(self, rows: Sequence[int]) -> dict[str, float]:
        """Mean over the classes that have pixels of their intersection over union."""
        values = [self._overlap(row) for row in rows if self.confusion[row].any()]
        return {"mIoU": sum(values) / len(values) if values else math.nan}

    def taken_for(self, row: int) -> list[tuple[int, float]]:
        """The commonest answers to its pixels."""
        shares = self.confusion[row] / self.confusion[row].sum().clamp_min(1)
        best = shares.argsort(descending=True, stable=True)[:3].tolist()
        return [(index, float(shares[index])) for index in best if shares[index] > 0]

    def _overlap(self, row: int) -> float:
        others = ~select(torch.arange(len(self.confusion)), [r for r in self.gone if r != row])
        hit = int(self.confusion[row, row])
        answered = int(self.confusion[others, row].sum())
        union = answered + int(self.confusion[row].sum()) - hit
        return hit / union


def _draw(rows: Tensor, generator: torch.Generator) -> Tensor:
    """(PIXELS, 2) rows and places of pixels of one flat mask; filled up with row -1."""
    there = torch.nonzero(rows != VOID)[:, 0]
    drawn = torch.full((PIXELS, 2), 0)
    drawn[:, 0] = VOID
    if len(there):
        area = torch.bincount(rows[there])[rows[there]].float()
        chosen = torch.multinomial(area.rsqrt(), min(PIXELS, len(there)), generator=generator)
        drawn[: len(chosen), 0] = rows[there[chosen]]
        drawn[: len(chosen), 1] = there[chosen]
    return drawn
