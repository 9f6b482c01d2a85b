"""Cut a set with boxes or masks in two: ``validation/`` to choose with, ``test/`` to measure with, one training part.

Both folders hold the same ``train``. The ``test`` part of ``validation/`` is the public set's own validation part, or
each sixth of its training images; that of ``test/`` is the public set's test part. With ``--drive`` there is
``validation/`` alone, whose ``test`` part is a whole drive of the training part: images that begin so; with ``--last``
only so many at its end. ``--shown`` leaves one of the other drives to train on. Run, with the data unpacked::

    python benchmarks/dense_split.py --data cells3 -o split
    python benchmarks/dense_split.py --data street11 --drive 0006R0 -o drive
    python benchmarks/dense_split.py --data street11 --drive 0006R0 --shown 0001TP -o few
    python benchmarks/dense_split.py --data street11 --drive 0001TP --last 24 -o late
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

EACH = 6
"""One image in so many of the training part is for validation, where the set has no validation part."""


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--drive", default="", help="hold out the training images whose names begin so (masks)")
    parser.add_argument("--last", type=int, default=0, help="with --drive: hold out only so many images at its end")
    parser.add_argument("--shown", default="", help="with --drive: train on those alone that begin so")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if (options.shown or options.last) and not options.drive:
        parser.error("--shown and --last are said with --drive")
    if options.last < 0:
        parser.error("--last is a number of images")
    if options.drive:
        split_drive(options.data, options.drive, options.last, options.shown, options.output / "validation")
    elif (options.data / "classes.txt").is_file():
        split_masks(options.data, options.output)
    else:
        split_boxes(options.data, options.output)


def split_masks(data: Path, output: Path) -> None:
    """The parts ``train``, ``val`` and ``test`` of images with masks."""
    for name, part in (("validation", "val"), ("test", "test")):
        (output / name).mkdir(parents=True)
        shutil.copy(data / "classes.txt", output / name)
        shutil.copytree(data / "train", output / name / "train")
        shutil.copytree(data / part, output / name / "test")


def split_drive(data: Path, drive: str, last: int, shown: str, place: Path) -> None:
    """The part ``train`` of images with masks in two: a drive, or its ``last`` images, to test on, others to train on.

    The others are all, or those that begin with ``shown``.
    """
    for kind in ("images", "masks"):
        for part in ("train", "test"):
            (place / part / kind).mkdir(parents=True)
        files = sorted((data / "train" / kind).iterdir())
        held = [file for file in files if file.name.startswith(drive)][-last:]  # -0 takes all
        for file in files:
            if file in held:
                shutil.copy(file, place / "test" / kind)
            elif file.name.startswith(shown):
                shutil.copy(file, place / "train" / kind)
    shutil.copy(data / "classes.txt", place)


def split_boxes(data: Path, output: Path) -> None:
    """The parts ``train`` and ``test`` of images with boxes, in COCO's JSON."""
    listed = {part: json.loads((data / f"{part}.json").read_bytes()) for part in ("train", "test")}
    images = sorted(listed["train"]["images"], key=lambda image: str(image["file_name"]))
    train = [image for index, image in enumerate(images) if index % EACH]
    for name, part, chosen in (("validation", "train", images[::EACH]), ("test", "test", listed["test"]["images"])):
        write_boxes(listed["train"], train, data / "train", output / name, "train")
        write_boxes(listed[part], chosen, data / part, output / name, "test")


def write_boxes(listed: dict[str, Any], images: list[dict[str, Any]], source: Path, place: Path, part: str) -> None:
    """``part`` of ``place``, with some of the images that ``listed`` lists and their annotations."""
    folder = place / part
    folder.mkdir(parents=True)
    kept = {image["id"] for image in images}
    annotations = [a for a in listed["annotations"] if a["image_id"] in kept]
    (place / f"{part}.json").write_text(json.dumps(listed | {"images": images, "annotations": annotations}))
    for image in images:
        shutil.copy(source / image["file_name"], folder / image["file_name"])


if __name__ == "__main__":
    main()
