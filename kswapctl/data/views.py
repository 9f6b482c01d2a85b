"""Fixed variants of each image: mild shifts, turns, light, blur and erasing, drawn once by seed.

Fixed, so that what is frozen can be computed once per view. Only images with masks are mirrored: a mirrored sign or
letter is another class, a mirrored street is another street.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kswapctl.data.marks import NONE
from kswapctl.tasks import Marks

TURN, ZOOM, ASPECT, SHEAR, SHIFT = 0.20, 0.18, 0.08, 0.12, 0.16
"""Largest turn (radians), zoom, change of aspect, shear, and shift (half-widths) of a view."""
NEARER = 3.2
"""Where masks move along, the largest zoom, inwards only and on any part of the image: 1.8 at half the strength."""
CONTRAST, BRIGHTNESS, TINT, NOISE = 0.4, 0.5, 0.08, 0.05
"""Largest relative change of contrast, brightness and channel gain; standard deviation of noise in [0, 1]."""
BLURRED, ERASED = 0.35, 0.25
"""Share of images that a view blurs, and of images that lose a patch."""
ENOUGH = {"boxes": 2, "masks": 4}
"""Variants of an image that are enough, itself included, where no other number is asked for: other light alone shows
little that is new, and masks have many items.
"""

Marked = tuple[Tensor, Tensor]
"""Images, and what is marked on them."""


@dataclass(frozen=True)
class Variation:
    """How images are varied."""

    seed: int
    """Decides all."""
    strength: float = 1.0
    """How far variants go, in [0, 1]."""
    marks: Marks = "labels"
    """What is marked on the images."""


def make_views(pixels: Tensor, targets: Tensor, count: int, variation: Variation) -> Marked:
    """(V, N, C, H, W) uint8: ``pixels`` (N, C, H, W) uint8 itself, and ``count - 1`` variants of each; and targets.

    Boxes stay where they are, so nothing moves or is covered. (N, H, W) masks move along: each variant is then an
    image of its own, and what comes back is (1, V * N, C, H, W) and (V * N, H, W).
    """
    generator = torch.Generator().manual_seed(variation.seed)
    views = [(pixels, targets), *(_variant(pixels, targets, generator, variation) for _ in range(count - 1))]
    images = torch.stack([seen for seen, _ in views])
    if variation.marks != "masks":
        return images, targets
    return images.flatten(0, 1)[None], torch.cat([there for _, there in views])


def mix_views(pixels: Tensor, targets: Tensor, untouched: float, variation: Variation) -> Marked:
    """(1, N, C, H, W) uint8: a share ``untouched`` of ``pixels`` as they are, of the rest one variant; and targets."""
    generator = torch.Generator().manual_seed(variation.seed)
    varied = torch.randperm(len(pixels), generator=generator)[round(untouched * len(pixels)) :]
    pixels, targets = pixels.clone(), targets.clone()
    if len(varied):
        pixels[varied], targets[varied] = _variant(pixels[varied], targets[varied], generator, variation)
    return pixels[None], targets


def _variant(pixels: Tensor, targets: Tensor, generator: Generator, variation: Variation) -> Marked:
    """One random view of each image, as bytes, and its targets."""
    images = pixels.float() / 255
    if variation.marks == "masks":
        images, targets = vary_masked(images, targets, generator, variation.strength)
    else:
        change = vary if variation.marks == "labels" else relight
        images = change(images, generator, variation.strength)
    return (images * 255).round().to(torch.uint8), targets


def relight(images: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """One random view of each of (N, C, H, W) images in [0, 1]: light and sharpness change, nothing moves."""
    return _relight(_blur(images, generator, strength), generator, strength).clamp(0, 1)


def vary(images: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """One random view of each of (N, C, H, W) images in [0, 1]; ``strength`` in [0, 1] scales every change."""
    drawn = strength * _uniform((6, len(images)), generator)
    images = _sample(images, _motion(images, drawn, 1 + drawn[1] * ZOOM))
    images = _blur(images, generator, strength)
    images = _relight(images, generator, strength)
    return _erase(images, generator, strength).clamp(0, 1)


def vary_masked(images: Tensor, masks: Tensor, generator: Generator, strength: float = 1.0) -> Marked:
    """One random view of each of (N, C, H, W) images in [0, 1], and its (N, H, W) mask, which moves along.

    Nothing is covered; what comes in from beyond the border has the row -1. Half of the views are mirrored.
    """
    *drawn, side = strength * _uniform((7, len(images)), generator)
    zoom = NEARER ** (-(drawn[1] + strength) / 2)
    motion = _motion(images, drawn, zoom, (1 - zoom) / strength if strength else 0.0)
    motion[side < 0] *= motion.new_tensor([-1, 1])
    return relight(_sample(images, motion), generator, strength), _follow(masks, motion)


def _uniform(size: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(*size, generator=generator) * 2 - 1


def _motion(images: Tensor, drawn: Iterable[Tensor], zoom: Tensor, room: Tensor | float = 0.0) -> Tensor:
    """(N, H, W, 2) places from which each pixel of a view comes, by six (N,) numbers drawn in -strength to strength.

    ``zoom`` is the share of the sides that is seen, and ``room`` what is added to ``SHIFT``.
    """
    turn, _, aspect, shear, right, down = drawn
    cos, sin = (turn * TURN).cos(), (turn * TURN).sin()
    aspect, shift = 1 + aspect * ASPECT, SHIFT + room
    top = torch.stack([cos * zoom * aspect, -sin * zoom + shear * SHEAR, right * shift], dim=1)
    bottom = torch.stack([sin * zoom, cos * zoom / aspect, down * shift], dim=1)
    return F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)


def _sample(images: Tensor, motion: Tensor) -> Tensor:
    """Beyond the border it goes on as at the border."""
    return F.grid_sample(images, motion, padding_mode="border", align_corners=False)


def _follow(masks: Tensor, motion: Tensor) -> Tensor:
    """The nearest pixel's row."""
    shown = F.grid_sample((masks[:, None] - NONE).float(), motion, "nearest", "zeros", align_corners=False)
    return (shown[:, 0] + NONE).to(masks.dtype)


def _blur(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Shrink and enlarge again: at full strength to 40% to 100% of the size."""
    chosen = torch.randperm(len(images), generator=generator)[: int(len(images) * BLURRED)]
    blurred = images.clone()
    height, width = images.shape[-2:]
    for part in chosen.chunk(4):
        factor = 1 - 0.6 * strength * torch.rand(1, generator=generator).item()
        small = (max(8, int(height * factor)), max(8, int(width * factor)))
        shrunk = F.interpolate(images[part], size=small, mode="bilinear", antialias=True)
        blurred[part] = F.interpolate(shrunk, size=(height, width), mode="bilinear")
    return blurred


def _relight(images: Tensor, generator: Generator, strength: float) -> Tensor:
    count, channels = images.shape[:2]
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast = 1 + _uniform((count, 1, 1, 1), generator) * CONTRAST * strength
    brightness = 1 + _uniform((count, 1, 1, 1), generator) * BRIGHTNESS * strength
    tint = 1 + _uniform((count, channels, 1, 1), generator) * TINT * strength
    noise = torch.rand(count, 1, 1, 1, generator=generator) * NOISE * strength
    lit = ((images - mean) * contrast + mean * brightness) * tint
    return lit + torch.randn(images.shape, generator=generator) * noise


def _erase(images: Tensor, generator: Generator, strength: float) -> Tensor:
    """Cover a patch of up to a third of the side with one colour."""
    count, channels, height, width = images.shape
    erased = images.clone()
    for index in torch.nonzero(torch.rand(count, generator=generator) < ERASED * strength).flatten().tolist():
        size, place = torch.rand(2, generator=generator), torch.rand(2, generator=generator)
        high, wide = int(size[0] * 0.3 * height) + 1, int(size[1] * 0.3 * width) + 1
        top, left = int(place[0] * (height - high)), int(place[1] * (width - wide))
        erased[index, :, top : top + high, left : left + wide] = torch.rand(channels, 1, 1, generator=generator)
    return erased
