"""Files of boxes and masks: what would silently give one image the marks of another, or none, is named."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from kswapctl.data.images import decode, upright_size
from kswapctl.data.sources import open_source
from kswapctl.errors import DataError
from kswapctl.spec import Preprocessing

FED = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", crop_mode="squash")
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # turn by 90 degrees clockwise to see it upright


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """One image of 16 x 8 pixels, stored on its side, with a box."""
    (tmp_path / "boxes" / "train").mkdir(parents=True)
    Image.new("RGB", (8, 16)).save(tmp_path / "boxes" / "train" / "a.jpg", exif=SIDEWAYS)
    image = {"id": 1, "file_name": "a.jpg", "width": 16, "height": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}
    listed = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "boxes" / "train.json").write_text(json.dumps(listed))
    return tmp_path / "boxes"


def edit(boxes: Path, **changes: object) -> None:
    """Change the entry of the image, or add a second one."""
    listed = json.loads((boxes / "train.json").read_text())
    image = listed["images"][0]
    if changes.pop("again", False):
        image = dict(image)
        listed["images"].append(image)
        shutil.copy(boxes / "train" / "a.jpg", boxes / "train" / "b.jpg")
    image.update(changes)
    (boxes / "train.json").write_text(json.dumps(listed))


def test_boxes_of_an_upright_image_are_read(boxes: Path) -> None:
    source = open_source(str(boxes))
    assert source.read(source.samples[0])


def test_an_image_in_two_parts_is_told(boxes: Path) -> None:
    (boxes / "train").rename(boxes / "images")
    edit(boxes, file_name="images/a.jpg")
    shutil.copy(boxes / "train.json", boxes / "test.json")
    with pytest.raises(DataError, match=r"images/a\.jpg is listed in \w+\.json and in another part"):
        open_source(str(boxes))


def test_boxes_of_an_image_on_its_side_are_refused(boxes: Path) -> None:
    edit(boxes, width=8, height=16)
    source = open_source(str(boxes))
    with pytest.raises(DataError, match=r"a\.jpg has 16 x 8 pixels, upright, and is listed with 8 x 16"):
        source.read(source.samples[0])


@pytest.mark.parametrize(
    ("width", "height", "alike"), [(160, 80, True), (159, 80, True), (16, 16, False), (24, 8, False)]
)
def test_boxes_of_an_image_of_another_shape_are_refused(boxes: Path, width: int, height: int, alike: bool) -> None:
    """Another size alone, as of a thumbnail, moves no box."""
    edit(boxes, width=width, height=height)
    source = open_source(str(boxes))
    if alike:
        assert source.read(source.samples[0])
    else:
        with pytest.raises(DataError, match=rf"is listed with {width} x {height}, another shape"):
            source.read(source.samples[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"again": True, "file_name": "b.jpg"}, r"gives a\.jpg and b\.jpg the same id 1"),
        ({"again": True, "id": 2}, r"lists a\.jpg twice"),
        ({"width": None}, r"gives a\.jpg the size None x 8"),
        ({"height": 0}, r"gives a\.jpg the size 16 x 0"),
    ],
)
def test_a_list_that_mixes_images_up_is_refused(boxes: Path, changes: dict[str, object], said: str) -> None:
    edit(boxes, **changes)
    with pytest.raises(DataError, match=said):
        open_source(str(boxes))


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([(1, "cat"), (1, "dog")], "gives cat and dog the same id 1"),
        ([(1, None)], "calls category 1 None"),
        ([(1, "building\nedifice")], "has a line break"),
    ],
)
def test_categories_that_cannot_be_told_apart_or_named_are_refused(boxes: Path, categories, said: str) -> None:
    listed = json.loads((boxes / "train.json").read_text())
    listed["categories"] = [{"id": index, "name": name} for index, name in categories]
    (boxes / "train.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match=said):
        open_source(str(boxes))


def test_a_category_listed_twice_alike_is_one(boxes: Path) -> None:
    listed = json.loads((boxes / "train.json").read_text())
    listed["categories"] *= 2
    (boxes / "train.json").write_text(json.dumps(listed))
    assert open_source(str(boxes)).classes == ("cat",)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """One image of 16 x 8 pixels, stored on its side, with the mask of the upright one."""
    for part in ("images", "masks"):
        (tmp_path / "masks" / "train" / part).mkdir(parents=True)
    (tmp_path / "masks" / "classes.txt").write_text("sky\nroad\n")
    Image.new("RGB", (8, 16)).save(tmp_path / "masks" / "train" / "images" / "a.jpg", exif=SIDEWAYS)
    Image.new("L", (16, 8), 1).save(tmp_path / "masks" / "train" / "masks" / "a.png")
    return tmp_path / "masks"


def test_a_mask_of_the_upright_image_is_read(masks: Path) -> None:
    assert open_source(str(masks)).classes == ("road",)


@pytest.mark.parametrize("place", [12, 29])
def test_a_mask_with_a_broken_header_is_told(masks: Path, place: int) -> None:
    file = masks / "train" / "masks" / "a.png"
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"mask a\.png cannot be read") as raised:
        open_source(str(masks))
    assert "skip" not in raised.value.hint


def test_more_classes_than_a_mask_can_tell_are_refused(masks: Path) -> None:
    (masks / "classes.txt").write_text("\n".join(f"class {i}" for i in range(256)))
    with pytest.raises(DataError, match="names 256 classes"):
        open_source(str(masks))


def test_an_image_with_a_mask_that_is_a_link_to_nothing_is_told(masks: Path) -> None:
    image = masks / "train" / "images" / "a.jpg"
    image.unlink()
    image.symlink_to(masks / "nowhere.jpg")
    source = open_source(str(masks))
    with pytest.raises(DataError, match=r"a\.jpg is not there, or a link to nothing"):
        decode(source, source.samples, FED)


def test_a_mask_of_an_image_on_its_side_is_refused(masks: Path) -> None:
    Image.new("L", (8, 16), 1).save(masks / "train" / "masks" / "a.png")
    with pytest.raises(DataError, match=r"mask a\.png has 8 x 16 pixels, its image a\.jpg 16 x 8"):
        open_source(str(masks))


def test_an_image_that_cannot_be_read_is_not_called_a_mask_and_can_be_skipped(masks: Path) -> None:
    (masks / "train" / "images" / "a.jpg").write_bytes(b"<html>")
    source = open_source(str(masks))
    with pytest.raises(DataError, match=r"^image \S*a\.jpg cannot be read"):
        decode(source, source.samples, FED)
    Image.new("RGB", (16, 8)).save(masks / "train" / "images" / "b.jpg")
    Image.new("L", (16, 8), 1).save(masks / "train" / "masks" / "b.png")
    source = open_source(str(masks))
    images = decode(source, source.samples, FED, skip_bad=True)
    assert ([sample.key for sample in images.samples], len(images.bad)) == (["train/images/b.jpg"], 1)


def test_a_blank_line_among_class_names_is_refused(masks: Path) -> None:
    (masks / "classes.txt").write_text("sky\n\nroad\n")
    with pytest.raises(DataError, match=r"line 2 of .*classes\.txt is blank"):
        open_source(str(masks))


def test_a_class_name_that_stands_twice_is_refused(masks: Path) -> None:
    (masks / "classes.txt").write_text("sky\nroad\nsky\n")
    with pytest.raises(DataError, match=r"line 3 of .*classes\.txt names 'sky' again"):
        open_source(str(masks))


def test_class_names_may_begin_with_a_mark_of_their_encoding(masks: Path) -> None:
    (masks / "classes.txt").write_text("sky\nroad\n", encoding="utf-8-sig")
    assert open_source(str(masks)).classes == ("road",)


def test_class_names_in_another_encoding_are_refused(masks: Path) -> None:
    (masks / "classes.txt").write_bytes("straße\nsky\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is no UTF-8 text"):
        open_source(str(masks))


def test_the_size_of_a_png_is_read_without_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one too large to decode: opening a set must not unfold it."""
    file = io.BytesIO()
    Image.new("L", (64, 32)).save(file, "PNG")
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert upright_size(file.getvalue(), "k") == (64, 32)


@pytest.mark.parametrize(("data", "said"), [(b"", r"is empty \(0 bytes\)"), (b"<html>", "no image format known here")])
def test_a_bad_image_beside_boxes_is_named_as_any_other(boxes: Path, data: bytes, said: str) -> None:
    (boxes / "train" / "a.jpg").write_bytes(data)
    source = open_source(str(boxes))
    with pytest.raises(DataError, match=said) as raised:
        source.read(source.samples[0])
    assert "--skip-bad" in raised.value.hint


def test_a_list_of_classes_beside_class_folders_makes_no_masks_of_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert (open_source(str(tmp_path)).marks, open_source(str(tmp_path)).classes) == ("labels", ("cat", "dog"))


@pytest.mark.parametrize(
    ("listed", "key", "value"),
    [("images", "file_name", None), ("images", "file_name", 7), ("images", "id", [1]), ("annotations", "image_id", {})],
)
def test_a_value_of_another_type_is_named(boxes: Path, listed: str, key: str, value: object) -> None:
    parsed = json.loads((boxes / "train.json").read_text())
    parsed[listed][0][key] = value
    (boxes / "train.json").write_text(json.dumps(parsed))
    with pytest.raises(DataError, match=f"entry 1 of the {listed} in train.json has the {key} "):
        open_source(str(boxes))
