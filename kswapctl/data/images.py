"""Decode images once, to bytes of the model's input size; what cannot be read is named, never skipped in silence."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kswapctl.data.marks import Mark, stack
from kswapctl.data.sources import Sample, Source
from kswapctl.errors import DataError
from kswapctl.spec import Preprocessing

MAX_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: a small file can unfold to gigabytes."""
MAX_BAD_SHARE = 0.01
"""With ``--skip-bad``, above this share of unreadable images the data as a whole is refused."""

ORIENTATION, SIDEWAYS = 0x0112, {5, 6, 7, 8}
"""The Exif tag that says how a camera was held, and its values where width and height change places."""

THREADED = 32_768
"""Bytes of an image file from which on threads pay."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are an error of ours

Report = Callable[[int], None]


@dataclass(frozen=True)
class Images:
    """Decoded images with their labels."""

    pixels: Tensor
    """(N, C, H, W), uint8."""
    samples: tuple[Sample, ...]
    """The N samples, in the order of ``pixels``."""
    digests: tuple[str, ...]
    """SHA-256 of each image's file."""
    bad: tuple[str, ...] = ()
    """Keys of images that could not be read and were skipped."""
    marks: tuple[Mark, ...] = ()
    """The boxes or masks of the N images; empty where each has a label."""

    def targets(self, classes: Sequence[str]) -> Tensor:
        """(N,) positions of the labels in ``classes``, or what :func:`kswapctl.data.marks.stack` makes of marks."""
        position = {name: index for index, name in enumerate(classes)}
        if self.marks:
            return stack(self.marks, position)
        return torch.tensor([position[s.label] for s in self.samples], dtype=torch.long)

    def shown(self) -> list[set[str]]:
        """The classes on each of the N images."""
        return [m.names() for m in self.marks] or [{s.label} for s in self.samples]

    def fingerprint(self) -> str:
        """SHA-256 over labels and files, in no order: the same images, the same hash."""
        said = [m.lines() for m in self.marks] or [s.label for s in self.samples]
        lines = sorted(f"{label}\0{digest}" for label, digest in zip(said, self.digests, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)


def decode(
    source: Source,
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    skip_bad: bool = False,
    report: Report | None = None,
) -> Images:
    """Read, decode and resize ``samples`` as timm would for evaluation, up to but without normalising.

    An image that cannot be read is a :class:`DataError` that names it; with ``skip_bad`` it is left out and
    listed, up to one in a hundred.
    """
    transform = _transform(preprocessing)

    def one(sample: Sample) -> tuple[Tensor, str] | DataError:
        try:
            data = source.read(sample)
            pixels = torch.as_tensor(transform(open_image(data, sample.key, preprocessing.input_size[0])))
        except DataError as error:
            return error
        return pixels, hashlib.sha256(data).hexdigest()

    kept: list[Sample] = []
    pixels: list[Tensor] = []
    digests: list[str] = []
    bad: list[DataError] = []
    with _mapped(source, samples) as mapped:
        for sample, result in zip(samples, mapped(one, samples), strict=True):
            if isinstance(result, DataError):
                if not skip_bad:
                    raise result
                bad.append(result)
            else:
                kept.append(sample)
                pixels.append(result[0])
                digests.append(result[1])
            if report:
                report(1)
    _check_bad(bad, len(samples))
    stacked = torch.stack(pixels) if pixels else torch.empty(0, *preprocessing.input_size, dtype=torch.uint8)
    size = preprocessing.input_size[1:]
    marks = tuple(source.mark(sample.key, size) for sample in kept) if source.mark else ()
    _check_classes(samples, {s.label for s in kept}.union(*(mark.names() for mark in marks)))
    return Images(stacked, tuple(kept), tuple(digests), tuple(e.message for e in bad), marks)


@contextmanager
def _mapped(source: Source, samples: Sequence[Sample]) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, on several threads where files are large: Pillow lets go of Python's lock while it decodes.

    With small ones threads would only wait for each other.
    """
    if not samples or _size(source, samples[0]) < THREADED:
        yield map
        return
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _size(source: Source, sample: Sample) -> int:
    """Bytes of a file; one that cannot be read is met again where it is named."""
    try:
        return len(source.read(sample))
    except (DataError, OSError):
        return 0


def open_image(data: bytes, key: str, channels: int = 3) -> Image.Image:
    """The decoded image, upright, in RGB (or grey for one channel).

    Empty, truncated, oversized or unknown files are a :class:`DataError`; of an animation the first frame
    counts; transparency is dropped; 16-bit grey is scaled to 8.
    """
    with opened(data, f"image {key}") as image:
        image.load()
        if image.getexif():
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in {"I", "F"}:
            raise DataError(f"image {key} has 32 bits a pixel, and does not say what is white", "save it with 8 or 16")
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # Pillow warns of the direct way
        return image.convert("L" if channels == 1 else "RGB")


def upright_size(data: bytes, key: str) -> tuple[int, int]:
    """Width and height of the image once it is upright, without decoding it: annotations are made on what is seen."""
    with opened(data, f"image {key}") as image:
        # of a PNG, Pillow would decode all pixels to look for Exif data behind them
        sideways = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(ORIENTATION) in SIDEWAYS
        return (image.height, image.width) if sideways else (image.width, image.height)


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image before it is decoded; whatever Pillow finds wrong with it, also later, is a :class:`DataError`."""
    if not data:
        raise DataError(f"{name} is empty (0 bytes)", "restore or remove it, or say --skip-bad")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{name} has {image.width} x {image.height} pixels", "shrink it, or say --skip-bad")
        yield image
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        TypeError,  # Pillow, of broken Exif data
        struct.error,  # the same
        EOFError,
    ) as error:
        reason = "no image format known here" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name} cannot be read ({reason})", "restore or remove it, or say --skip-bad") from error


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(N, C, H, W) uint8 to the floats the model expects."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, -1, 1, 1) * 255
    return (pixels.float() - mean) / std


def _transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    from timm.data import create_transform  # only here: who opens a source needs no timm

    transform: Callable[[Image.Image], Tensor] = create_transform(
        preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
        use_prefetcher=True,  # in timm: leave bytes as bytes, normalise later
    )
    return transform


def _check_classes(wanted: Sequence[Sample], shown: set[str]) -> None:
    """A class that is on no image left would be learned, kept or measured by none at all."""
    gone = {s.label for s in wanted if s.label} - shown
    if gone:
        name = min(gone)
        count = sum(s.label == name for s in wanted)
        raise DataError(
            f"class {name!r}: none of the {count} images chosen of it can be read", "repair its images, or leave it out"
        )


def _check_bad(bad: Sequence[DataError], total: int) -> None:
    if len(bad) > max(1, MAX_BAD_SHARE * total) or len(bad) == total > 0:
        raise DataError(
            f"{len(bad)} of {total} images cannot be read, the first: {bad[0].message}",
            "repair the data: more than 1% is bad",
        )
