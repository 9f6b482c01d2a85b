"""Detectors and segmenters: data, items, scores, and the same commands and methods as for classifiers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from shapes import NETWORKS, write_network, write_shapes

from kswapctl.data.sources import open_source
from kswapctl.errors import DataError, NotFoundError
from kswapctl.methods import METHODS
from kswapctl.tasks import TASKS

FEWEST = ("--set", "steps=2", "--set", "cycles=1", "--set", "retain_views=1", "--set", "change_views=1")
EVERY = [(name, method.kind) for name, kinds in METHODS.items() for method in kinds]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    boxes, masks = write_shapes(tmp_path_factory.mktemp("shapes"))
    return {"boxes": boxes, "masks": masks}


@pytest.fixture
def annotations(shapes, tmp_path):
    """A copy of the folder with boxes, and its parsed train part; write it back to break it."""
    folder = Path(shutil.copytree(shapes["boxes"], tmp_path / "boxes"))
    return folder, json.loads((folder / "train.json").read_text())


def refused(folder, listed):
    (folder / "train.json").write_text(json.dumps(listed))
    with pytest.raises(DataError) as caught:
        open_source(str(folder))
    return caught.value.message


def test_boxes_outside_their_image_are_named(annotations):
    folder, listed = annotations
    listed["annotations"][0]["bbox"] = [60, 0, 20, 10]
    assert refused(folder, listed).startswith("annotation 0 of train.json has a box outside its image train0.png")


def test_annotations_of_images_that_are_not_listed_are_named(annotations):
    folder, listed = annotations
    listed["annotations"][0]["image_id"] = 99
    assert refused(folder, listed) == "annotation 0 of train.json is of image 99, which is not listed"


def test_listed_images_that_are_not_there_are_named(annotations):
    folder, listed = annotations
    listed["images"][0]["file_name"] = "none.png"
    assert refused(folder, listed) == "train.json lists none.png, which does not exist"


def test_unknown_categories_are_named(annotations):
    folder, listed = annotations
    listed["annotations"][0]["category_id"] = 7
    assert refused(folder, listed) == "annotation 0 of train.json has the category 7, which is not listed"


def test_masks_of_another_size_are_named(shapes, tmp_path):
    folder = Path(shutil.copytree(shapes["masks"], tmp_path / "masks"))
    Image.new("L", (10, 10)).save(folder / "train" / "masks" / "train0.png")
    with pytest.raises(DataError, match=r"mask train0.png has 10 x 10 pixels, its image train0.png 64 x 64"):
        open_source(str(folder))


def test_indices_without_a_name_are_named(shapes, tmp_path):
    folder = Path(shutil.copytree(shapes["masks"], tmp_path / "masks"))
    Image.new("L", (64, 64), 9).save(folder / "train" / "masks" / "train0.png")
    with pytest.raises(DataError, match=r"mask train0.png has the index 9"):
        open_source(str(folder))


def test_classes_that_no_image_has_are_named(shapes):
    with pytest.raises(NotFoundError, match="has no class 'violet'"):
        open_source(str(shapes["boxes"])).require(["violet"])


def test_an_object_is_matched_with_the_query_on_it():
    """Two queries, the second lies on the object; the item is its class scores, in the column behind "no object"."""
    task = TASKS["detection"]
    outputs = torch.tensor([[[[0.2, 0.2, 0.1, 0.1, 0.0, 1.0, 2.0], [0.7, 0.7, 0.2, 0.2, 0.0, 3.0, 4.0]]]])
    truth = torch.tensor([[[1, 0.7, 0.7, 0.2, 0.2], [-1, -1, -1, -1, -1]]])
    items = task.items(torch.tensor([[[1.0], [2.0]]]), outputs, truth)
    assert items.targets.tolist() == [[2, -1]]
    assert items.outputs[0, 0].tolist() == [0.0, 3.0, 4.0]
    assert items.features[0, 0].tolist() == [2.0]


def test_boxes_of_what_is_forgotten_are_not_trained():
    task = TASKS["detection"]
    outputs = torch.rand(1, 2, 3, 7, requires_grad=True)
    truth = torch.tensor([[[1, 0.5, 0.5, 0.2, 0.2]]])
    gradient = torch.autograd.grad(task.aside(outputs, truth, torch.tensor([1])), outputs)[0]
    assert not gradient[..., :4].any()
    assert torch.autograd.grad(task.aside(outputs, truth, torch.tensor([])), outputs)[0][..., :4].any()


def test_mean_average_precision_of_perfect_and_of_silent_answers():
    """One object of class 0 answered exactly, one of class 1 not at all: AP 1 and 0, class 1 taken for nothing."""
    task = TASKS["detection"]
    targets = torch.tensor([[[0, 0.3, 0.3, 0.2, 0.2, 0], [1, 0.7, 0.7, 0.2, 0.2, 0]]])
    outputs = torch.tensor([[[[0.3, 0.3, 0.2, 0.2, 0.0, 5.0, -9.0], [0.7, 0.7, 0.2, 0.2, 0.0, -9.0, -9.0]]]])
    measured = task.measure(task.answers(outputs, (64, 64)), targets, 2, [1])
    assert measured.score([0]) == pytest.approx({"mAP": 1.0, "mAP50": 1.0})
    assert measured.score([1])["mAP"] == 0.0
    assert measured.taken_for(1) == [(-1, 1.0)]


def test_intersection_over_union_leaves_out_what_is_gone():
    """Row 0: two pixels right, and one of row 1 answered with it: 2/3; where row 1 is gone its pixel does not count."""
    task = TASKS["segmentation"]
    answers, targets = torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[0, 0], [1, -1]]])
    assert task.measure(answers, targets, 2, []).score([0])["mIoU"] == pytest.approx(2 / 3)
    gone = task.measure(answers, targets, 2, [1])
    assert gone.score([0])["mIoU"] == 1.0
    assert gone.score([1])["mIoU"] == 0.0
    assert gone.taken_for(1) == [(0, 1.0)]


def test_a_set_without_pixels_has_no_score():
    measured = TASKS["segmentation"].measure(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), 2, [])
    assert math.isnan(measured.score([1])["mIoU"])


def test_drawn_pixels_are_of_the_mask():
    task = TASKS["segmentation"]
    targets = torch.full((1, 8, 8), -1)
    targets[0, :2, :2] = 3
    truth = task.truth(targets, torch.zeros(1, 8, 8, 5))
    drawn = truth[0][truth[0, :, 0] >= 0]
    assert sorted(drawn[:, 1].tolist()) == [0, 1, 8, 9]
    assert set(drawn[:, 0].tolist()) == {3}


def test_an_image_is_in_one_part_whichever_class_is_asked_for(shapes):
    from kswapctl.data.sets import changed_part, retained_part
    from kswapctl.spec import Rehearsal

    source = open_source(str(shapes["boxes"]))
    changed = changed_part([source], ["red"], Rehearsal(), 0)
    retained, _ = retained_part([source], ["green", "blue"], Rehearsal(share=1.0), 0)
    trained = {s.key for part in (changed, retained) for _, samples in part.train for s in samples}
    held = {s.key for part in (changed, retained) for _, samples in part.validation for s in samples}
    assert held
    assert not trained & held


@pytest.fixture(scope="module")
def dense_home(shapes, tmp_path_factory):
    """A registry with a detector and a segmenter of random weights; not to be changed."""
    from conftest import invoke

    folder = tmp_path_factory.mktemp("dense")
    assert invoke(folder / "home", "init").code == 0
    for kind in ("rt_detr", "segformer"):
        ran = invoke(
            folder / "home", "add", kind, write_network(folder / kind, kind), "--data", shapes[NETWORKS[kind][1]]
        )
        assert ran.code == 0, ran.err
    return folder / "home"


@pytest.fixture
def dense(dense_home, tmp_path, invoke):
    """Run a command on a copy of the registry with a detector and a segmenter."""
    home = Path(shutil.copytree(dense_home, tmp_path / "home"))
    return lambda *arguments: invoke(home, *arguments)


@pytest.mark.parametrize("model", ["rt_detr", "segformer"])
def test_learning_forgetting_and_merging_take_the_same_commands(dense, shapes, tmp_path, model):
    data = shapes[NETWORKS[model][1]]
    for line in (("learn", model, "--data", data, "--classes", "blue"), ("forget", model, "--classes", "red")):
        ran = dense(*line, *FEWEST, "--set", "sparsity=0.0")
        assert ran.code == 0, ran.err
    assert dense("merge", model, "-o", tmp_path / "merged.safetensors").code == 0
    added = dense("add", "again", tmp_path / "merged.safetensors")
    assert added.code == 0, added.err
    sets = {s["name"]: s for s in dense("eval", model, "--json").json["sets"]}
    assert set(sets) == {"retain", "learned", "forgotten"}
    again = dense("eval", "again", "--data", data, "--per-class", "--json").json["per_class"]
    assert {c["name"] for c in again} == {"red", "green", "blue"}
    assert dense("rollback", model, "--to", "base").code == 0


def test_a_detector_refuses_images_without_boxes(dense, digits):
    ran = dense("learn", "rt_detr", "--data", digits, "--classes", "nine", *FEWEST)
    assert ran.code == 4
    assert "has labels, the model needs boxes" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_family_goes_through_the_commands(shapes, tmp_path, invoke, kind):
    home, data = tmp_path / "home", shapes[NETWORKS[kind][1]]
    network = write_network(tmp_path / kind, kind)
    for line in (
        ("init",),
        ("add", "m", network, "--data", data),
        ("learn", "m", "--data", data, "--classes", "blue", *FEWEST, "--set", "sparsity=0.0"),
        ("forget", "m", "--classes", "red", *FEWEST, "--set", "sparsity=0.0"),
        ("eval", "m"),
        ("diff", "m@base", "m@2"),
        ("merge", "m", "-o", tmp_path / "merged.safetensors"),
        ("add", "again", tmp_path / "merged.safetensors", "--data", data),
        ("bundle", "m", "-o", tmp_path / "m.bundle"),
    ):
        ran = invoke(home, *line)
        assert ran.code == 0, (line[0], ran.err)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rt_detr", "segformer"])
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_method_written_for_images_runs_on_objects_and_pixels(dense, shapes, model, name, kind):
    data = shapes[NETWORKS[model][1]]
    line = (kind, model, "--data", data, "--classes", {"learn": "blue", "forget": "red"}[kind], "--method", name)
    ran = dense(*line, *FEWEST)
    assert ran.code == 0, ran.err
    assert dense("rollback", model, "--to", "base").code == 0
