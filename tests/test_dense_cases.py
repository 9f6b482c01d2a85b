"""What sets of boxes and masks may hold that tidy ones do not: crowds, thin things, images with nothing on them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import write_network

from kswapctl.data.images import Images
from kswapctl.data.marks import Box, Boxes, Mask
from kswapctl.data.sources import Sample, open_source
from kswapctl.data.splits import all_tested
from kswapctl.errors import DataError, UnsafeInputError
from kswapctl.models.families import configure
from kswapctl.models.transformer import _sides
from kswapctl.models.weights import read, write
from kswapctl.operations.pools import drawing_order
from kswapctl.operations.surgery import _showing
from kswapctl.spec import Knowledge
from kswapctl.tasks import TASKS

FEWEST = ("--set", "steps=2", "--set", "cycles=1", "--set", "retain_views=1", "--set", "change_views=1")


def edit(folder: Path, part: str, change) -> None:
    """Change the list of boxes of a part."""
    file = folder / f"{part}.json"
    listed = json.loads(file.read_text())
    change(listed)
    file.write_text(json.dumps(listed))


@pytest.fixture
def boxes(shapes, tmp_path: Path) -> Path:
    """Red (1), green (2) and blue (3) rectangles with boxes, to change."""
    return Path(shutil.copytree(shapes["boxes"], tmp_path / "boxes"))


@pytest.fixture
def masks(shapes, tmp_path: Path) -> Path:
    """The same with masks."""
    return Path(shutil.copytree(shapes["masks"], tmp_path / "masks"))


def test_a_class_of_crowds_alone_cannot_be_learned(dense_home, boxes, invoke, state) -> None:
    def crowd(listed):
        for annotation in listed["annotations"]:
            annotation["iscrowd"] = int(annotation["category_id"] == 3)

    edit(boxes, "train", crowd)
    before = state(dense_home)
    ran = invoke(dense_home, "learn", "rt_detr", "--data", boxes, "--classes", "blue", *FEWEST)
    assert ran.code == 4
    assert "class 'blue' has nothing in its training images that the network could answer for" in ran.err
    assert state(dense_home) == before


def test_a_class_thinner_than_a_pixel_of_the_answer_cannot_be_learned(dense_home, masks, invoke) -> None:
    for file in (masks / "train" / "masks").iterdir():
        mask = np.asarray(Image.open(file)).copy()
        mask[mask == 2] = 3  # void
        mask[0, 0] = 2
        Image.fromarray(mask).save(file)
    ran = invoke(dense_home, "learn", "segformer", "--data", masks, "--classes", "blue", *FEWEST)
    assert (ran.code, "class 'blue' has nothing" in ran.err) == (4, True)


def test_a_crowd_is_no_object_to_be_found() -> None:
    targets = torch.tensor([[[0.0, 0.5, 0.5, 0.2, 0.2, 1.0]]])
    measured = TASKS["detection"].measure(torch.full((1, 1, 6), -1.0), targets, 1, [])
    assert (measured.count(0), measured.images([0])) == (0, 0)
    assert math.isnan(measured.score([0])["mAP"])


def test_answers_to_images_with_nothing_on_them_count(boxes) -> None:
    def strip(listed):
        listed["annotations"] = [a for a in listed["annotations"] if a["image_id"] > 1]

    edit(boxes, "test", strip)
    source = open_source(str(boxes))
    tested = {s.key for s in all_tested(source)}
    assert {"test/test0.png", "test/test1.png"} <= tested
    assert {s.label for s in source.unlabelled} == {""}
    assert "" not in source.classes


def test_an_image_of_a_learned_class_is_drawn_as_often_whatever_its_name() -> None:
    place = (0.5, 0.5, 0.2, 0.2)
    boxes = Boxes((Box("apple", place), Box("new", place)))
    mask = Mask(np.array([[0, 1]], np.uint8), ("apple", "new"))
    plain = Mask(np.array([[0, 0]], np.uint8), ("apple", "new"))
    for marks in ((boxes, Boxes((Box("apple", place),))), (mask, plain)):
        samples = (Sample("a", "apple", "train"), Sample("b", "apple", "train"))
        images = Images(torch.empty(2, 3, 4, 4, dtype=torch.uint8), samples, ("", ""), (), marks)
        order = drawing_order(images, Knowledge(("apple", "new"), {"new": 1}), 3)
        assert order.tolist() == [0, 0, 0, 1]
        twice = drawing_order(images, Knowledge(("apple", "new"), {"new": 1}), 3, copies=2)
        assert twice.tolist() == [0, 0, 0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (512, (512, 512)),
        ([480, 640], (480, 640)),
        ({"height": 480, "width": 640}, (480, 640)),
        ({"shortest_edge": 800, "longest_edge": 1333}, (800, 800)),
        ({"max_height": 512, "max_width": 256}, (512, 256)),
    ],
)
def test_the_input_size_is_read_in_every_form(size, sides) -> None:
    assert _sides(size, "x") == sides


@pytest.mark.parametrize("size", [[1, 2, 3], {"height": 480}, "large", 0, {"height": -1, "width": 5}])
def test_an_input_size_of_another_form_is_refused(size) -> None:
    with pytest.raises(DataError, match=r"preprocessor_config\.json of x has the size"):
        _sides(size, "x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--mean", "0.5,0.5"), "mean has 2 values for 3 channels"),
        (("--std", "0,0,0"), "images are divided by it"),
        (("--mean", "a,b,c"), "not one number a channel"),
    ],
)
def test_means_and_deviations_are_one_a_channel(dense_home, tmp_path, invoke, given, said) -> None:
    folder = write_network(tmp_path / "network", "segformer")
    ran = invoke(dense_home, "add", "other", folder, *given)
    assert (ran.code, said in ran.err) == (4, True), ran.err


def test_blocks_are_chosen_by_images_that_show_every_class() -> None:
    marks = tuple(Boxes((Box(name, (0.5, 0.5, 0.2, 0.2)),)) for name in ("a", "a", "a", "b", "c"))
    images = Images(torch.zeros(5, 3, 4, 4), (), (), (), marks)
    assert _showing(images, ("b", "c"), 3).tolist() == [3, 4, 0]
    assert _showing(images, ("c", "b", "a"), 2).tolist() == [4, 3, 0]
    assert _showing(images, (), 2).tolist() == [0, 1]
    assert _showing(images, ("none", "b"), 2).tolist() == [3, 0]


def test_a_figure_without_images_of_what_changed_has_no_gradient(dense_changed, boxes, tmp_path) -> None:
    edit(boxes, "test", lambda d: d.update(annotations=[a for a in d["annotations"] if a["category_id"] == 2]))
    ran = dense_changed("analyze", "rt_detr", "--data", boxes, "-o", tmp_path / "figures", "-q")
    assert ran.code == 0, ran.err
    profiles = json.loads((tmp_path / "figures" / "layers.json").read_text())
    assert [p["gradient"] for p in profiles] == [None, None]
    assert "mAP" in json.loads((tmp_path / "figures" / "sequence.json").read_text())


def test_a_backbone_of_timm_is_built_and_not_fetched(boxes, tmp_path, invoke) -> None:
    """As DETR's own checkpoints have it."""
    folder = write_network(tmp_path / "network", "detr_timm")
    for line in (
        ("init",),
        ("add", "m", folder, "--data", boxes),
        ("learn", "m", "--data", boxes, "--classes", "blue", *FEWEST),
        ("merge", "m", "-o", tmp_path / "m.safetensors"),
        ("add", "again", tmp_path / "m.safetensors"),
    ):
        ran = invoke(tmp_path / "home", *line)
        assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--architecture", "vit_tiny_patch16_224"), "leave --architecture away"),
        (("--model-arg", "d_model=8"), "says its d_model itself"),
        (("--model-arg", "height=auto"), "an input of auto x"),
        (("--model-arg", "height=0"), "an input of 0 x"),
    ],
)
def test_what_a_folder_says_itself_cannot_be_told_otherwise(tmp_path: Path, invoke, flags, told: str) -> None:
    invoke(tmp_path / "home", "init")
    ran = invoke(tmp_path / "home", "add", "m", write_network(tmp_path / "network", "segformer"), *flags)
    assert (ran.code, told in ran.err) == (2, True)


def test_a_configuration_of_another_form_is_told(tmp_path: Path, invoke) -> None:
    folder = write_network(tmp_path / "network", "segformer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_channels": "3"}))
    invoke(tmp_path / "home", "init")
    ran = invoke(tmp_path / "home", "add", "m", folder)
    assert (ran.code, "has no configuration that transformers reads" in ran.err) == (3, True)


def test_a_merged_segmenter_is_fed_as_it_is_told(dense_home: Path, tmp_path: Path, invoke) -> None:
    home = Path(shutil.copytree(dense_home, tmp_path / "home"))
    file = tmp_path / "m.safetensors"
    assert invoke(home, "merge", "segformer", "-o", file).code == 0
    assert invoke(home, "add", "grey", file, "--mean", "0.4,0.4,0.4").code == 0
    fed = invoke(home, "show", "grey", "--json").json["spec"]["preprocessing"]
    assert fed["mean"] == [0.4, 0.4, 0.4]
    assert invoke(home, "add", "none", file, "--std", "0,0,0").code == 4


def test_a_segmenter_is_not_fed_with_a_part_of_the_image(dense_home: Path, tmp_path: Path, invoke) -> None:
    home = Path(shutil.copytree(dense_home, tmp_path / "home"))
    file = tmp_path / "m.safetensors"
    assert invoke(home, "merge", "segformer", "-o", file).code == 0
    tensors, said = read(file)
    for crop, code in (("center", 4), (None, 0)):
        said["preprocessing"] = {k: v for k, v in (said["preprocessing"] | {"crop_mode": crop}).items() if v}
        write(tensors, tmp_path / "n.safetensors", said)
        assert invoke(home, "add", f"m{code}", tmp_path / "n.safetensors").code == code
    assert invoke(home, "show", "m0", "--json").json["spec"]["preprocessing"]["crop_mode"] == "squash"


@pytest.mark.parametrize("name", ["hf-hub:someone/something", "someone/something", "no_such_network"])
def test_a_backbone_that_would_be_fetched_is_refused(name) -> None:
    arguments = {"backbone_config__model_type": "timm_backbone", "backbone_config__backbone": name}
    with pytest.raises(UnsafeInputError, match="would make transformers open another file"):
        configure("transformers.detr", arguments, 2)


@pytest.mark.parametrize(
    ("task", "answers", "renamed"),
    [
        ("classification", torch.tensor([0, 1]), [2, 0]),
        ("segmentation", torch.tensor([[[0, 1]]], dtype=torch.int16), [[[2, 0]]]),
        ("detection", torch.tensor([[[1.0, 0.5], [-1.0, 0.0]]]), [[[0.0, 0.5], [-1.0, 0.0]]]),
    ],
)
def test_answers_are_renamed_to_another_version_s_rows(task, answers, renamed) -> None:
    assert TASKS[task].renamed(answers, torch.tensor([2, 0])).tolist() == renamed


def test_names_as_published_networks_and_sets_have_them_can_be_told(boxes: Path, tmp_path: Path, invoke) -> None:
    def rename(listed):
        listed["categories"][2]["name"] = "blue, dark"

    for part in ("train", "test"):
        edit(boxes, part, rename)
    home = tmp_path / "home"
    network = write_network(tmp_path / "network", "detr", ("N/A", "red", "green ", "N/A"))
    assert invoke(home, "init").code == 0
    assert invoke(home, "add", "m", network, "--data", boxes).code == 0
    ran = invoke(
        home, "swap", "m", "--learn", boxes, "--classes", '"blue, dark"', "--data", boxes, "--forget", "green", *FEWEST
    )
    assert ran.code == 0, ran.err
    assert [m["classes"] for m in invoke(home, "models", "--json").json] == [["N/A 0", "red", "green", "N/A 3"]]
