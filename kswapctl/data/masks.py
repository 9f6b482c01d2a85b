"""Images with indexed PNG masks: ``classes.txt``, and in each part ``images/`` and ``masks/`` with the same names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from kswapctl.data.images import opened, upright_size
from kswapctl.data.marks import Mask
from kswapctl.data.sources import IMAGES, SPLITS, Sample, Source, read_file, read_parts
from kswapctl.errors import DataError

CLASSES = "classes.txt"
"""One class name a line, in the order of the masks' indices."""
VOID = "void"
"""The name in ``classes.txt`` of what counts for nothing."""
BORDER = 255
"""An index that counts for nothing whatever ``classes.txt`` says, as in Pascal VOC."""


def is_there(root: Path) -> bool:
    """Whether ``root`` names its classes and has masks: a list of classes alone may lie beside class folders."""
    return (root / CLASSES).is_file() and any(place.is_dir() for place in (root / "masks", *root.glob("*/masks")))


def open_masks(root: Path) -> Source:
    """The images of ``root``, one sample for each class on an image; every mask is opened, and checked."""
    names = _class_names(root / CLASSES)
    parts = {p.name: p for p in sorted(root.iterdir()) if p.name.lower() in SPLITS and (p / "masks").is_dir()}
    parts = {name: parts[name] for name in read_parts(parts)}
    if (root / "masks").is_dir():
        parts[""] = root
    samples: list[Sample] = []
    masks: dict[str, Path] = {}
    for part, folder in parts.items():
        if not (folder / "images").is_dir():
            raise DataError(f"{folder} has masks but no images", f"put them into {folder / 'images'}")
        for file in sorted(p for p in (folder / "images").iterdir() if p.suffix.lower() in IMAGES):
            key = str(file.relative_to(root))
            masks[key] = folder / "masks" / f"{file.stem}.png"
            present = _present(masks[key], file, names)
            samples += [Sample(key, names[i], SPLITS[part.lower()]) for i in present]
    if not samples:
        raise DataError(f"no images with masks in {root}", "expected DIR/train/images/ and DIR/train/masks/")

    def mark(key: str, size: tuple[int, int]) -> Mask:
        with _opened(masks[key]) as mask:
            resized = mask.resize(size[::-1], Image.Resampling.NEAREST)
        return Mask(_without_void(np.asarray(resized), names), names)

    return Source(str(root), tuple(samples), lambda s: read_file(root / s.key, s.key), "masks", mark)


def _class_names(file: Path) -> tuple[str, ...]:
    """One a line; a blank line among them would shift the indices of all that follow."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text", "save it as UTF-8") from error
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise DataError(f"line {names.index('') + 1} of {file} is blank", "each line names the class of one index")
    if twice := next((i for i, name in enumerate(names) if name in names[:i]), 0):
        raise DataError(f"line {twice + 1} of {file} names {names[twice]!r} again", "each line names another class")
    if len(names) > BORDER:
        raise DataError(f"{file} names {len(names)} classes", f"an index of {BORDER} counts for nothing: name fewer")
    return names


def _present(mask: Path, image: Path, names: tuple[str, ...]) -> list[int]:
    """Indices of the classes in a mask; another size than the image's, or an unknown index, is a :class:`DataError`.

    An image that cannot be read has no size here: who decodes it says so, or skips it.
    """
    if not mask.is_file():
        raise DataError(f"{image.name} has no mask {mask.parent.name}/{mask.name}", "add it, or remove the image")
    try:
        size = upright_size(read_file(image, image.name), image.name)
    except DataError:
        size = None
    with _opened(mask) as shown:
        if size and shown.size != size:
            raise DataError(
                f"mask {mask.name} has {shown.width} x {shown.height} pixels, "
                f"its image {image.name} {size[0]} x {size[1]}",
                "a mask has the size of its image, turned upright where its Exif data say so",
            )
        if shown.mode not in {"P", "L"}:
            raise DataError(f"mask {mask.name} is no indexed PNG (its mode is {shown.mode})", "save indices")
        indices = np.unique(np.asarray(shown))
    unknown = [int(i) for i in indices if i >= len(names) and i != BORDER]
    if unknown:
        raise DataError(
            f"mask {mask.name} has the index {unknown[0]}, but {CLASSES} names {len(names)} classes",
            f"add its name, or use {BORDER} for what counts for nothing",
        )
    return [int(i) for i in indices if i < len(names) and names[i] != VOID]


@contextmanager
def _opened(mask: Path) -> Iterator[Image.Image]:
    """A mask that cannot be read is never skipped: what its image shows would be unknown."""
    try:
        with opened(read_file(mask, mask.name), f"mask {mask.name}") as shown:
            yield shown
    except DataError as error:
        error.hint = error.hint.removesuffix(", or say --skip-bad")
        raise


def _without_void(indices: npt.NDArray[np.uint8], names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    return np.where(indices == names.index(VOID), BORDER, indices).astype(np.uint8) if VOID in names else indices.copy()
