"""What is on an image where one label is not enough: boxes with class names, or a class name for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NONE = -1
"""Row of a place that counts for nothing, and of the places that fill up a shorter list."""


class Mark(Protocol):
    """The marks of one image."""

    def targets(self, rows: Mapping[str, int]) -> Tensor:
        """Class names as ``rows``; of a class that has none pixels count for nothing, and boxes are left out."""
        ...

    def names(self) -> set[str]:
        """The classes that are on the image."""
        ...

    def lines(self) -> str:
        """All of it as text, for fingerprints."""
        ...


@dataclass(frozen=True)
class Box:
    """One object."""

    label: str
    place: tuple[float, float, float, float]
    """Centre and size, as shares of the image's width and height."""
    crowd: bool = False
    """Whether it stands for many objects: found or not, it counts for nothing."""


@dataclass(frozen=True)
class Boxes:
    """The objects of one image."""

    boxes: tuple[Box, ...]

    def targets(self, rows: Mapping[str, int]) -> Tensor:
        """(M, 6): row, centre and size, 1 for a crowd."""
        listed = [[float(rows[b.label]), *b.place, float(b.crowd)] for b in self.boxes if b.label in rows]
        return torch.tensor(listed).reshape(-1, 6)

    def names(self) -> set[str]:
        """Of its objects."""
        return {b.label for b in self.boxes}

    def lines(self) -> str:
        """A line an object."""
        return "\n".join(f"{b.label} {b.place} {b.crowd}" for b in self.boxes)


@dataclass(frozen=True)
class Mask:
    """The classes of one image's pixels, at the size of the network's input."""

    indices: npt.NDArray[np.uint8]
    """(H, W) positions in ``classes``, or beyond it where a pixel counts for nothing."""
    classes: tuple[str, ...]

    def targets(self, rows: Mapping[str, int]) -> Tensor:
        """(H, W) rows."""
        table = np.full(256, NONE, dtype=np.int16)
        for index, name in enumerate(self.classes):
            table[index] = rows.get(name, NONE)
        return torch.from_numpy(table[self.indices])

    def names(self) -> set[str]:
        """Of its pixels."""
        return {self.classes[i] for i in np.unique(self.indices) if i < len(self.classes)}

    def lines(self) -> str:
        """The pixels, in one line."""
        return f"{self.classes} {self.indices.tobytes().hex()}"


def stack(marks: Sequence[Mark], rows: Mapping[str, int]) -> Tensor:
    """The targets of N images as one tensor; shorter lists are filled up with rows of -1."""
    each = [mark.targets(rows) for mark in marks]
    longest = max((len(one) for one in each), default=0)
    full = [torch.cat([one, one.new_full((longest - len(one), *one.shape[1:]), NONE)]) for one in each]
    return torch.stack(full)
