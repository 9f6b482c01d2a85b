"""Images with boxes, in COCO's JSON: one file a part, beside the folder of its images. What does not fit is named."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kswapctl.data.images import upright_size
from kswapctl.data.marks import Box, Boxes
from kswapctl.data.sources import SPLITS, Sample, Source, read_parts
from kswapctl.errors import DataError, UnsafeInputError

ID = (int, float, str)
TYPED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": ID, "file_name": (str,)},
    "annotations": {"image_id": ID, "category_id": ID},
    "categories": {"id": ID},
}
"""What names another entry, or a file, and in which form."""
SLACK = 2.0
"""Pixels by which a box may leave its image: annotations are rounded, and then cut at the border."""


def find_parts(place: Path) -> dict[str, Path]:
    """Part to JSON file of a folder (``train.json``, ``test.json`` ...), or the one file itself."""
    if place.suffix.lower() == ".json":
        return {place.stem if place.stem.lower() in SPLITS else "": place}
    found = {p.stem: p for p in sorted(place.glob("*.json")) if p.stem.lower() in SPLITS}
    return {name: found[name] for name in read_parts(found)}


def open_coco(place: Path) -> Source:
    """The images that the JSON files at ``place`` list, one sample for each class on an image."""
    marks: dict[str, Boxes] = {}
    sizes: dict[str, tuple[float, float]] = {}
    samples: list[Sample] = []
    empty: list[Sample] = []
    root = place if place.is_dir() else place.parent
    for part, file in find_parts(place).items():
        for key, (boxes, size) in _read_part(file, root).items():
            if key in marks:
                raise DataError(f"{key} is listed in {file.name} and in another part", "an image belongs to one part")
            marks[key], sizes[key] = boxes, size
            labels = sorted(boxes.names())
            samples += [Sample(key, label, SPLITS[part.lower()]) for label in labels]
            empty += [] if labels else [Sample(key, "", SPLITS[part.lower()])]
    if not samples:
        raise DataError(f"no image in {place} has a box", "it needs annotations of at least one class")

    def read(sample: Sample) -> bytes:
        data = (root / sample.key).read_bytes()
        _check_upright(data, sample.key, sizes[sample.key])
        return data

    return Source(str(place), tuple(samples), read, "boxes", lambda key, _: marks[key], tuple(empty))


def _check_upright(data: bytes, key: str, size: tuple[float, float]) -> None:
    """Boxes of an image that had another shape when it was marked, or lay on its side, would be somewhere else."""
    width, height = upright_size(data, key)
    listed, seen = math.log(size[0] / size[1]), math.log(width / height)
    if abs(listed + seen) < abs(listed - seen):
        raise DataError(
            f"image {key} has {width} x {height} pixels, upright, and is listed with {size[0]} x {size[1]}",
            "its boxes must be those of the upright image",
        )
    if abs(width * size[1] / size[0] - height) > 1 and abs(height * size[0] / size[1] - width) > 1:  # not by rounding
        raise DataError(
            f"image {key} has {width} x {height} pixels, and is listed with {size[0]} x {size[1]}, another shape",
            "its boxes must be those of this very image",
        )


def _read_part(file: Path, root: Path) -> dict[str, tuple[Boxes, tuple[float, float]]]:
    """File name of each image, from ``root``, to its boxes and its width and height."""
    parsed = _parse(file)
    categories = _categories(parsed["categories"], file.name)
    folder = file.parent / file.stem
    folder = folder if folder.is_dir() else file.parent
    there = {entry.name for entry in os.scandir(folder) if entry.is_file()}  # a link may lead nowhere
    images: dict[Any, dict[str, Any]] = {}
    for image in parsed["images"]:
        _check_alone(image, images, file.name)
        name = Path(str(image["file_name"]))
        if name.is_absolute() or ".." in name.parts:
            raise UnsafeInputError(f"{file.name} lists {name}, which leads out of {folder.name}", "correct the list")
        if image["file_name"] not in there and not (folder / image["file_name"]).is_file():
            raise DataError(f"{file.name} lists {image['file_name']}, which does not exist", f"put it into {folder}")
        images[image["id"]] = image
    boxes: dict[Any, list[Box]] = defaultdict(list)
    for annotation in parsed["annotations"]:
        if (box := _box(annotation, images, categories, file.name)) is not None:
            boxes[annotation["image_id"]].append(box)
    found: dict[str, tuple[Boxes, tuple[float, float]]] = {}
    for index, image in images.items():
        key = str((folder / image["file_name"]).relative_to(root))
        if key in found:
            raise DataError(f"{file.name} lists {image['file_name']} twice", "an image has one entry, and one id")
        found[key] = Boxes(tuple(boxes[index])), (image["width"], image["height"])
    return found


def _categories(listed: Sequence[Mapping[str, Any]], file: str) -> dict[Any, str]:
    """Names by id; an id of two names, or a name that is no text, is a :class:`DataError`."""
    names: dict[Any, str] = {}
    for category in listed:
        index, name = category["id"], category["name"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{file} calls category {index!r} {name!r}", "a name is text")
        if names.setdefault(index, name) != name:
            raise DataError(f"{file} gives {names[index]} and {name} the same id {index!r}", "number them anew")
    return names


def _check_alone(image: Mapping[str, Any], images: Mapping[Any, Mapping[str, Any]], file: str) -> None:
    """An image has a size, and an id of its own: else the boxes of one would be those of another."""
    name = image["file_name"]
    if not all(isinstance(image[side], int | float) and image[side] > 0 for side in ("width", "height")):
        raise DataError(f"{file} gives {name} the size {image['width']!r} x {image['height']!r}", "sizes are in pixels")
    if image["id"] in images:
        other = images[image["id"]]["file_name"]
        raise DataError(f"{file} gives {other} and {name} the same id {image['id']!r}", "number the images anew")


def _parse(file: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name} cannot be read: {error}", "it must be JSON as COCO writes it") from error
    needed = {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}
    needed["annotations"] = ("id", "image_id", "category_id", "bbox")
    for name, keys in needed.items():
        listed = parsed.get(name) if isinstance(parsed, dict) else None
        if not isinstance(listed, list):
            raise DataError(f"{file.name} has no list of {name}", "it must be JSON as COCO writes it")
        for number, entry in enumerate(listed, start=1):
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking:
                raise DataError(f"entry {number} of the {name} in {file.name} has no {lacking[0]!r}")
            for key, kinds in TYPED[name].items():
                if not isinstance(entry[key], kinds):
                    raise DataError(
                        f"entry {number} of the {name} in {file.name} has the {key} {entry[key]!r}",
                        "file names are text, ids are numbers",
                    )
    return dict(parsed)


def _box(
    annotation: Mapping[str, Any], images: Mapping[Any, Any], categories: Mapping[Any, str], file: str
) -> Box | None:
    """One annotation, checked; None for a box without area in its image: public sets have a few."""
    name = f"annotation {annotation['id']} of {file}"
    image = images.get(annotation["image_id"])
    if image is None:
        raise DataError(f"{name} is of image {annotation['image_id']}, which is not listed", "remove it, or list it")
    if annotation["category_id"] not in categories:
        raise DataError(
            f"{name} has the category {annotation['category_id']}, which is not listed", "add it to the categories"
        )
    width, height = image["width"], image["height"]
    try:
        left, top, wide, high = (float(v) for v in annotation["bbox"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has the box {annotation['bbox']!r}", "a box is [left, top, width, height]") from error
    inside = left >= -SLACK and top >= -SLACK and left + wide <= width + SLACK and top + high <= height + SLACK
    if not (wide >= 0 and high >= 0 and inside):
        raise DataError(
            f"{name} has a box outside its image {image['file_name']} of {width} x {height}: {annotation['bbox']}",
            "a box is [left, top, width, height], in pixels",
        )
    right, bottom = min(left + wide, width), min(top + high, height)
    left, top = max(left, 0.0), max(top, 0.0)
    if right <= left or bottom <= top:
        return None
    place = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return Box(categories[annotation["category_id"]], place, bool(annotation.get("iscrowd", 0)))
