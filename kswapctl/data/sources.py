"""Where labelled images come from: folders, manifests, Hugging Face datasets. Classes are names, never positions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kswapctl.data.marks import Mark
from kswapctl.errors import DataError, KswapError, NotFoundError, first_line, nearest
from kswapctl.tasks.base import Marks

MarkOf = Callable[[str, tuple[int, int]], Mark]
Split = Literal["train", "test", ""]
"""The part a sample belongs to; empty where the source does not say, and a seeded cut decides."""

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
    "": "",
}
"""How the parts are called outside; without a test part the validation part of a public set is its test."""
TESTS = {"test", "testing"}
"""Names of a test part; beside one, a validation part is left alone."""

FORMS = "labels: class folders, or a manifest; boxes: train.json in COCO format; masks: classes.txt, images/ and masks/"
"""How images are marked, for hints."""

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Sample:
    """One labelled image of a source."""

    key: str
    """The image's name within its source: unique, stable, shown in messages."""
    label: str
    """Class name."""
    split: Split
    """Which part it belongs to."""


@dataclass(frozen=True)
class Source:
    """Samples, and how to read the bytes of one."""

    name: str
    """As the user gave it, with folders absolute."""
    samples: tuple[Sample, ...]
    """Every sample, in a stable order."""
    read: Callable[[Sample], bytes]
    """The encoded image file."""
    marks: Marks = "labels"
    """What says what is on an image; where it is not one label, an image has a sample for each class on it."""
    mark: MarkOf | None = None
    """An image's marks, by its key and the size (height, width) that it is brought to."""
    unlabelled: tuple[Sample, ...] = ()
    """Images with nothing on them; their label is empty. They train nothing, but what is answered to them counts."""

    def __post_init__(self) -> None:
        """Refuse class names that no option could name."""
        for label in self.classes:
            if label != label.strip() or any(c in label for c in "\0\n"):
                raise DataError(f"class name {label!r} has a line break or blanks at its ends", "rename the class")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted({s.label for s in self.samples}))

    def check_marks(self, wanted: Marks) -> None:
        """Raise :class:`DataError` where the images are marked otherwise than a model's task needs."""
        if wanted != self.marks:
            raise DataError(f"{self.name} has {self.marks}, the model needs {wanted}", FORMS)

    def require(self, names: Iterable[str]) -> None:
        """Raise :class:`NotFoundError` for a class that has no image here."""
        have = set(self.classes)
        for name in names:
            if name not in have:
                raise NotFoundError(f"{self.name} has no class {name!r}", nearest(name, self.classes))


def open_source(text: str) -> Source:
    """Open what ``text`` names: ``hf:name``, a ``.csv`` or ``.jsonl`` manifest, or a folder."""
    if not text.strip():
        raise NotFoundError("the data have no name", "give a folder, a .csv or .jsonl manifest, or hf:NAME")
    if text == "hf:":
        raise NotFoundError("hf: names no dataset", "write hf:NAME")
    if text.startswith("hf:"):
        return _hugging_face(text, text.removeprefix("hf:"))
    path = Path(text).expanduser()
    if not path.exists():
        raise NotFoundError(f"no such data: {text}", "give a folder, a .csv or .jsonl manifest, or hf:NAME")
    path = path.resolve()
    if marked := _marked(path):
        return marked
    if path.suffix.lower() in {".csv", ".jsonl", ".ndjson"}:
        from kswapctl.data.manifests import open_manifest

        return open_manifest(path)
    if not path.is_dir():
        raise DataError(f"{text} is neither a folder nor a .csv or .jsonl manifest", FORMS)
    if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        return _hugging_face(str(path), str(path))
    return _folder(path)


def open_left(
    names: Iterable[str], opened: Callable[[str], Source] = open_source
) -> tuple[list[Source], list[KswapError]]:
    """The sources of earlier operations that are still there, and what is wrong with others: versions travel alone."""
    found: list[Source] = []
    gone: list[KswapError] = []
    for name in names:
        try:
            found.append(opened(name))
        except (NotFoundError, DataError) as error:
            gone.append(error)
    return found, gone


def _marked(path: Path) -> Source | None:
    """``path`` as images with boxes or masks, if it is that."""
    from kswapctl.data import coco, masks

    if coco.find_parts(path):
        return coco.open_coco(path)
    return masks.open_masks(path) if masks.is_there(path) else None


def _folder(root: Path) -> Source:
    parts = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLITS}
    parts = {name: parts[name] for name in read_parts(parts)}
    samples = [
        Sample(str(file.relative_to(root)), folder.name, SPLITS[part.lower()])
        for part, place in (parts or {"": root}).items()
        for folder in sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
        for file in _images(folder)
    ]
    if not samples:
        raise DataError(
            f"no class folders with images in {root}", f"expected DIR/train/<class>/ or DIR/<class>/; {FORMS}"
        )
    return Source(str(root), tuple(samples), lambda s: read_file(root / s.key, s.key))


def read_parts(names: Iterable[str]) -> list[str]:
    """Those of a source's parts that are read; a name that is not known is one of training."""
    listed = list(dict.fromkeys(names))
    if not TESTS & {name.lower() for name in listed}:
        return listed
    return [n for n in listed if n.lower() in TESTS or SPLITS.get(n.lower(), "train") != "test"]


def _images(folder: Path) -> list[Path]:
    _check_name(folder.name)
    files = [
        Path(place, name)
        for place, _, names in sorted(os.walk(folder))
        if f"{os.sep}." not in place.removeprefix(str(folder))  # tools keep copies there
        for name in sorted(names)
        if os.path.splitext(name)[1].lower() in IMAGES and not name.startswith(".")
    ]
    if not files:
        raise DataError(f"class folder {folder} holds no image", "remove the folder, or put images in it")
    return files


def read_file(file: Path, key: str) -> bytes:
    """A file's bytes; a link to nothing, or one that went meanwhile, is a :class:`DataError`."""
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"image {key} is not there, or a link to nothing", "restore it, or say --skip-bad") from error


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"class folder {name!r} is not named in UTF-8", "rename the folder") from error


def _hugging_face(name: str, place: str) -> Source:
    """A dataset of the Hub or a local ``save_to_disk`` folder, with an image and a label column."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "Hugging Face datasets need an extra package", "in a clone: uv sync --extra datasets"
        ) from error
    local = Path(place).is_dir()
    try:
        loaded = datasets.load_from_disk(place) if local else datasets.load_dataset(place)
    except (
        FileNotFoundError,
        ValueError,
        ConnectionError,
        RuntimeError,  # it has a script of its own, which is not run
        datasets.exceptions.DatasetsError,
    ) as error:
        raise NotFoundError(f"no dataset {name}: {first_line(error)}") from error
    parts: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    encoded = {part: _encoded(parts[part], name) for part in read_parts(parts)}
    samples = [
        Sample(f"{part}:{index}", label, SPLITS.get(part.lower(), "train"))
        for part, (_, labels) in encoded.items()
        for index, label in enumerate(labels)
    ]

    def read(sample: Sample) -> bytes:
        part, _, index = sample.key.rpartition(":")
        image = encoded[part][0][int(index)]
        if image is None:
            raise DataError(f"row {index} of {part or name} has no image", "remove it, or say --skip-bad")
        return image["bytes"] or read_file(Path(image["path"]), sample.key)

    return Source(name, tuple(samples), read)


def _encoded(table: Any, name: str) -> tuple[Any, list[str]]:
    """The image column, not decoded, and the labels as names."""
    import datasets

    images = next((k for k, f in table.features.items() if isinstance(f, datasets.Image)), None)
    label = next((k for k in ("label", "labels", "class", "fine_label") if k in table.features), None)
    if images is None or label is None:
        raise DataError(f"{name} has no image and label columns, only {', '.join(table.features)}")
    feature = table.features[label]
    values = table[label]
    numbered = isinstance(feature, datasets.ClassLabel)
    if missing := sum(v is None or (numbered and v < 0) for v in values):
        raise DataError(f"{missing} of {len(values)} images of a part of {name} have no label", "leave that part out")
    names = [feature.int2str(v) if numbered else str(v) for v in values]
    return table.cast_column(images, datasets.Image(decode=False))[images], names
