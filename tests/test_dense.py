"""Detectors and segmenters: data, items, scores, and the same commands and methods as for classifiers."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from shapes import NETWORKS, write_network

from kswapctl.data.sources import open_source
from kswapctl.demo.digits import CHECKPOINT
from kswapctl.errors import DataError, NotFoundError, ParityError, UsageError, WrongBaseError
from kswapctl.export.onnx import check_parity
from kswapctl.methods import METHODS
from kswapctl.models.blocks import find_blocks, with_all_layers
from kswapctl.models.building import build
from kswapctl.models.checkpoint import Description, load
from kswapctl.tasks import TASKS
from kswapctl.tasks.detection import across_classes, quality

FEWEST = ("--set", "steps=2", "--set", "cycles=1", "--set", "retain_views=1", "--set", "change_views=1")
EVERY = [(name, method.kind) for name, kinds in METHODS.items() for method in kinds]


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


def test_listed_images_that_are_links_to_nothing_are_named(annotations):
    folder, listed = annotations
    place = next(folder.rglob(listed["images"][0]["file_name"]))
    place.unlink()
    place.symlink_to("nowhere.png")
    assert refused(folder, listed) == "train.json lists train0.png, which does not exist"


def test_masks_without_a_folder_of_images_are_named(shapes, tmp_path):
    folder = Path(shutil.copytree(shapes["masks"], tmp_path / "masks"))
    (folder / "train" / "images").rename(folder / "train" / "imgs")
    with pytest.raises(DataError, match=r"train has masks but no images"):
        open_source(str(folder))


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


def test_boxes_and_scores_of_what_is_forgotten_are_not_trained():
    task = TASKS["detection"]
    outputs = torch.rand(1, 2, 3, 7, requires_grad=True)
    truth = torch.tensor([[[1, 0.5, 0.5, 0.2, 0.2]]])
    gradient = torch.autograd.grad(task.aside(outputs, truth, torch.tensor([1])), outputs)[0]
    assert not gradient[..., :4].any()
    assert gradient[..., 4:].any(-1).sum(-1).tolist() == [[2, 2]]  # of three queries, all but the object's
    assert torch.autograd.grad(task.aside(outputs, truth, torch.tensor([])), outputs)[0][..., :4].any()


def test_an_answer_is_as_sure_as_its_box_fits():
    """Log-odds of 0 for a half: ln 2. Against two others of 0, ln 2 is a probability of a half too."""
    scores, columns = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([1, 0])
    assert quality(scores, columns, torch.tensor([0.5, 0.5])).tolist() == pytest.approx([math.log(2)] * 2)
    scores = torch.tensor([[0.0, math.log(2), 0.0]], requires_grad=True)
    for overlap in (0.5, 0.9, 0.1):
        gradient = torch.autograd.grad(quality(scores, torch.tensor([1]), torch.tensor([overlap])).sum(), scores)[0]
        assert gradient[0, 1].item() == pytest.approx(0.5 - overlap, abs=1e-6)


def test_a_rare_class_weighs_as_much_as_a_common_one():
    """Three objects of class 0 with loss 1 and one of class 2 with loss 5: (1 + 5) / 2; of none, zero."""
    losses, rows = torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([0, 0, 0, 2])
    assert across_classes(losses, rows).item() == pytest.approx(3.0)
    assert across_classes(losses[:0], rows[:0]).item() == 0.0


def network_of(kind, folder):
    checkpoint = load(str(write_network(folder, kind)), Description())
    return build(checkpoint.spec, checkpoint.weights)


def test_all_layers_are_adapted_where_nearly_all_before_the_decoder_is_convolutions(tmp_path):
    blocks = find_blocks(network_of("rt_detr", tmp_path), "")
    parts = [re.sub(r"[.\d]+", ".", b.name.removeprefix("model.")).strip(".") for b in blocks]
    order = ["backbone.model.encoder.stages.layers", "encoder.aifi.layers", "encoder.fpn_blocks", "encoder.pan_blocks"]
    assert list(dict.fromkeys(parts)) == [*order, "decoder.layers"]
    layers = [layer for b in blocks for layer in b.layers]
    assert not any("class_embed" in layer or "score_head" in layer for layer in layers)
    assert len(set(layers)) == len(layers)
    assert "model.decoder.layers.1.encoder_attn.sampling_offsets" in blocks[-1].layers
    assert "model.encoder.pan_blocks.1.bottlenecks.2.conv2.conv" in blocks[parts.index("encoder.pan_blocks") + 1].layers


def test_deformable_detr_is_adapted_where_the_papers_do(tmp_path):
    """The feed-forward layers of encoder and decoder, and none of the backbone: six and six in its usual size."""
    blocks = find_blocks(network_of("deformable_detr", tmp_path), "")
    assert [b.name for b in blocks] == ["model.encoder.layers.0", "model.decoder.layers.0", "model.decoder.layers.1"]


def test_what_brings_stages_together_is_adapted(tmp_path):
    last = find_blocks(network_of("segformer", tmp_path), "")[-1]
    assert len(last.layers) == 5
    assert {layer.split(".")[1] for layer in last.layers} == {"linear_projections", "linear_fuse"}


@pytest.mark.parametrize(("kind", "shared"), [("rt_detr", False), ("detr", False), ("detr", True)])
def test_what_gives_boxes_is_adapted_with_its_layer_unless_it_is_shared(tmp_path, kind, shared):
    network = network_of(kind, tmp_path)
    if shared:
        network.another = network.bbox_predictor
    last = find_blocks(network, "")[-1]
    assert any("bbox" in layer for layer in last.layers) != shared
    assert ".decoder.layers." in last.name


def test_all_layers_of_a_decoder_are_without_its_classifier(tmp_path):
    network = network_of("segformer", tmp_path)
    last = with_all_layers(network, find_blocks(network, ""))[-1]
    assert last.name == "decode_head"
    assert "decode_head.linear_fuse" in last.layers
    assert "decode_head.classifier" not in last.layers


@pytest.mark.parametrize("name", TASKS)
def test_a_step_of_fewer_images_comes_more_often(name):
    """100 steps of 40 retained images; or one pass over 41 images, in batches of 40 times the task's share."""
    task, method = TASKS[name], METHODS["finetune"][0]
    assert method(steps=100).steps_of(41, task) == 100 * task.pace
    assert method(epochs=1).steps_of(41, task) == math.ceil(41 / (40 * task.share))


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


@pytest.mark.parametrize("marks", ["boxes", "masks"])
def test_of_few_marked_images_all_are_rehearsed_and_of_more_a_hundred(shapes, monkeypatch, marks):
    from kswapctl.data import sets
    from kswapctl.spec import Rehearsal

    source = open_source(str(shapes[marks]))

    def rehearsed(rehearsal):
        ((_, samples),) = sets.retained_part([source], ["green"], rehearsal, 0)[0].train
        return len(samples)

    every = rehearsed(Rehearsal(share=1.0))
    assert 3 < every < sets.MARKED_LEAST
    assert rehearsed(Rehearsal()) == every
    assert rehearsed(Rehearsal(per_class=2)) == 2
    monkeypatch.setattr(sets, "MARKED_LEAST", 3)
    assert rehearsed(Rehearsal()) == max(3, round(0.1 * every))
    assert rehearsed(Rehearsal(share=1.0)) == every


@pytest.mark.parametrize("model", ["rt_detr", "segformer"])
def test_what_was_learned_and_forgotten_is_measured_merged_and_taken_back(dense_changed, shapes, tmp_path, model):
    data = shapes[NETWORKS[model][1]]
    result = dense_changed("eval", model, "--json").json
    assert {s["name"] for s in result["sets"]} == {"retain", "learned", "forgotten"}
    assert set(result["taken_for"]) == {"red"}
    shares = [share for _, share in result["taken_for"]["red"]]
    assert all(0 < share <= 1 for share in shares)
    assert sum(shares) <= 1 + 1e-6
    assert {name for name, _ in result["taken_for"]["red"]} <= {"red", "green", "blue", "no object"}
    assert dense_changed("merge", model, "-o", tmp_path / "merged.safetensors").code == 0
    added = dense_changed("add", "again", tmp_path / "merged.safetensors")
    assert added.code == 0, added.err
    again = dense_changed("eval", "again", "--data", data, "--per-class", "--json").json["per_class"]
    assert {c["name"] for c in again} == {"red", "green", "blue"}
    assert dense_changed("rollback", model, "--to", "base").code == 0


def break_boxes(folder, change):
    listed = json.loads((folder / "train.json").read_text())
    change(listed)
    (folder / "train.json").write_text(json.dumps(listed))


BROKEN = {
    "no such image file": ("boxes", lambda f: (f / "train" / "train0.png").unlink(), 4, "train0.png"),
    "an image that is not listed": (
        "boxes", lambda f: break_boxes(f, lambda d: d["annotations"][0].update(image_id=99)), 4, "image 99",
    ),
    "a box outside": (
        "boxes", lambda f: break_boxes(f, lambda d: d["annotations"][0].update(bbox=[60, 0, 20, 10])), 4, "outside",
    ),
    "an unknown category": (
        "boxes", lambda f: break_boxes(f, lambda d: d["annotations"][0].update(category_id=7)), 4, "category 7",
    ),
    "a mask of another size": (
        "masks", lambda f: Image.new("L", (9, 9)).save(f / "train" / "masks" / "train0.png"), 4, "mask train0.png",
    ),
    "no mask": ("masks", lambda f: (f / "train" / "masks" / "train0.png").unlink(), 4, "train0.png"),
    "an index without a name": (
        "masks", lambda f: Image.new("L", (64, 64), 9).save(f / "train" / "masks" / "train0.png"), 4, "index 9",
    ),
    "a class that no box has": ("boxes", lambda f: None, 3, "violet"),
    "a class that no mask has": ("masks", lambda f: None, 3, "violet"),
}  # fmt: skip


@pytest.mark.parametrize("problem", BROKEN)
def test_bad_annotations_are_one_line_and_change_nothing(dense_home, shapes, tmp_path, invoke, state, problem):
    marks, harm, code, said = BROKEN[problem]
    folder = Path(shutil.copytree(shapes[marks], tmp_path / "data"))
    harm(folder)
    before = state(dense_home)
    model = {"boxes": "rt_detr", "masks": "segformer"}[marks]
    wanted = "violet" if "class" in problem else "blue"
    ran = invoke(dense_home, "learn", model, "--data", folder, "--classes", wanted, "-q", *FEWEST)
    assert ran.code == code, ran.err
    first, *hint = ran.err.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert all(line.startswith("hint: ") for line in hint)
    assert len(hint) <= 1
    assert state(dense_home) == before


@pytest.mark.parametrize("box", [[10.0, 10.0, 0.0, 0.0], [-1.5, 10.0, 1.0, 5.0], [64.0, 10.0, 1.0, 5.0]])
def test_a_box_without_area_is_left_out(annotations, box):
    """Public sets have some, also beside their image of 64 by 64 pixels; nothing can be matched with them."""
    folder, listed = annotations
    before = len(open_source(str(folder)).mark("train/train0.png", (64, 64)).boxes)
    first = next(a for a in listed["annotations"] if a["image_id"] == 0)
    first["bbox"] = box
    (folder / "train.json").write_text(json.dumps(listed))
    assert len(open_source(str(folder)).mark("train/train0.png", (64, 64)).boxes) == before - 1


def test_a_detector_refuses_images_without_boxes(dense_changed, digits):
    ran = dense_changed("learn", "rt_detr", "--data", digits, "--classes", "nine", *FEWEST)
    assert ran.code == 4
    assert "has labels, the model needs boxes" in ran.err


def test_both_precisions_stand_in_the_table_and_long_arguments_do_not(dense_changed):
    printed = dense_changed("eval", "rt_detr").out
    assert "mAP %" in printed
    assert "mAP50 %" in printed
    assert "see --json" in dense_changed("show", "rt_detr").out


@pytest.mark.parametrize("model", ["rt_detr", "segformer"])
def test_an_audit_is_refused_and_says_where_to_look(dense_changed, model):
    ran = dense_changed("audit", model)
    assert ran.code == 2
    assert "the attacks of an audit need one label an image" in ran.err


@pytest.mark.parametrize("model", ["rt_detr", "segformer"])
def test_figures_of_a_stack_are_drawn(dense_changed, tmp_path, model):
    ran = dense_changed("analyze", model, "-o", tmp_path, "--json", "-q")
    assert ran.code == 0, ran.err
    learned, forgot = json.loads((tmp_path / "layers.json").read_text())
    assert any(learned["gradient"])
    assert all(math.isfinite(g) for profile in (learned, forgot) for g in profile["gradient"])
    said = json.loads((tmp_path / "samples.json").read_text())
    assert {s["set"] for s in said} == {"learned", "forgotten", "retained"}


def test_a_configuration_of_more_classes_than_the_weights_is_told(tmp_path):
    folder = write_network(tmp_path / "net", "segformer")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["2"] = "blue"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WrongBaseError, match=r"has the shape \(2,.*by config\.json \(3,"):
        load(str(folder), Description())


@pytest.mark.parametrize("model", ["digits", "detector"])
def test_images_of_another_kind_are_no_model_s_data(fresh, invoke, tmp_path, shapes, model):
    source, data = (CHECKPOINT, shapes["boxes"]) if model == "digits" else (None, shapes["masks"])
    ran = invoke(fresh, "add", "another", source or write_network(tmp_path / "net", "rt_detr"), "--data", data)
    assert (ran.code, "the model needs" in ran.err) == (4, True), ran.err
    assert [m["model"] for m in invoke(fresh, "list", "--json").json] == ["digits"]


def test_images_of_another_kind_are_told_before_their_classes(run, shapes):
    for line in (("eval", "digits", "--data"), ("learn", "digits", "--classes", "ten", "--data")):
        ran = run(*line, shapes["boxes"])
        assert (ran.code, "has boxes, the model needs labels" in ran.err) == (4, True), ran.err


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
        ("show-predictions", "m", "-o", tmp_path / "m.png"),
    ):
        ran = invoke(home, *line)
        assert ran.code == 0, (line[0], ran.err)


@pytest.mark.parametrize(
    ("name", "views", "each"),
    [("gs-lora", ("--set", "retain_views=5"), 5), ("ewc", ("--set", "retain_views=3"), 3), ("erase", (), 4)],
)
def test_each_view_of_a_mask_is_an_image_but_an_epoch_is_of_those_that_are_there(
    dense_home, shapes, tmp_path, invoke, monkeypatch, name, views, each
):
    from kswapctl.training.pool import Maker

    home = Path(shutil.copytree(dense_home, tmp_path / "home"))
    made, make = [], Maker.make
    monkeypatch.setattr(Maker, "make", lambda *a: made.append(make(*a)) or made[-1])
    ran = invoke(
        home, "forget", "segformer", "--data", shapes["masks"], "--classes", "red", "--method", name,
        *views, "--set", "cycles=1", "--set", "epochs=6", "--blocks", "all", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    retain, change = made[0], made[1]
    for pool in (retain, change):
        assert len(pool.activations) == 1
        assert len(pool) == len(pool.before.targets) == len(pool.order)
    record = invoke(home, "show", "segformer@1", "--json").json["state"]["record"]
    there = record["data"]["retain"]["images"]
    assert len(retain) == each * there
    assert record["steps"] == 6 * -(-there // 5)


@pytest.mark.parametrize("name", ["ewc", "salun"])
def test_images_of_a_detector_may_have_one_object_each(dense_home, shapes, tmp_path, invoke, name):
    """Its object is the item, not the image: importances are of what the object's query answers."""
    home = Path(shutil.copytree(dense_home, tmp_path / "home"))
    data = Path(shutil.copytree(shapes["boxes"], tmp_path / "data"))

    def leave_one(listed):
        listed["annotations"] = list({a["image_id"]: a for a in reversed(listed["annotations"])}.values())

    break_boxes(data, leave_one)
    ran = invoke(home, "forget", "rt_detr", "--data", data, "--classes", "red", "--method", name, *FEWEST)
    assert ran.code == 0, ran.err
    assert "kswapctl eval rt_detr@" in ran.err  # an audit would refuse
    assert "audit" not in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits", "rt_detr", "segformer"])
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_method_serves_every_task(dense_home, base_home, shapes, digits, tmp_path, invoke, model, name, kind):
    """Methods know items, not tasks: the same file learns and forgets images, objects and pixels."""
    home = Path(shutil.copytree(base_home if model == "digits" else dense_home, tmp_path / "home"))
    data = digits if model == "digits" else shapes[NETWORKS[model][1]]
    classes = {"learn": "nine", "forget": "three"} if model == "digits" else {"learn": "blue", "forget": "red"}
    ran = invoke(home, kind, model, "--data", data, "--classes", classes[kind], "--method", name, *FEWEST)
    assert ran.code == 0, ran.err
    assert invoke(home, "eval", model).code == 0
    assert invoke(home, "rollback", model, "--to", "base").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detr", "rt_detr", "segformer", "yolos"])
def test_an_exported_network_answers_as_the_model_does(shapes, tmp_path, invoke, kind):
    import onnx

    home, file = tmp_path / "home", tmp_path / "m.onnx"
    data = shapes[NETWORKS[kind][1]]
    assert invoke(home, "init").code == 0
    network = write_network(tmp_path / kind, kind)
    sharpen(network)
    assert invoke(home, "add", "m", network, "--data", data).code == 0
    ran = invoke(home, "export", "m", "-o", file, "--json", "-q")
    assert ran.code == 0, ran.err
    assert ran.json["largest_logit_difference"] < 1e-3
    assert ran.json["top1_agreement"] == 1.0
    said = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert json.loads(said["kswapctl"])["outputs"] == TASKS[NETWORKS_TASK[NETWORKS[kind][1]]].answered


NETWORKS_TASK = {"boxes": "detection", "masks": "segmentation"}


def sharpen(network):
    """Small random weights give all places one score: which come first would be a matter of rounding."""
    from safetensors.torch import load_file, save_file

    file = network / "model.safetensors"
    tensors = load_file(file)
    torch.manual_seed(0)
    for tensor in tensors.values():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensor)
    save_file(tensors, file, {"format": "pt"})


def test_an_operator_that_cannot_be_exported_is_named(tmp_path):
    from kswapctl.export.onnx import write_onnx
    from kswapctl.spec import ModelSpec, Preprocessing

    class Bessel(torch.nn.Module):
        def forward(self, images):
            return torch.special.bessel_j0(images).flatten(1)

    spec = ModelSpec("odd", {}, ("a",), Preprocessing((3, 4, 4), (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(UsageError, match=r"odd cannot be exported: .* operator prims.bessel_j0"):
        write_onnx(Bessel(), spec, tmp_path / "m.onnx", 18, {})
    assert not (tmp_path / "m.onnx").exists()


def test_queries_in_another_order_are_the_same_answer():
    """Two queries above the floor and one below; the other network gives them in reverse, the sure one off by 0.5."""
    one = torch.tensor(
        [[[[0.2, 0.2, 0.1, 0.1, 0.0, 3.0], [0.7, 0.7, 0.2, 0.2, 0.0, 1.0], [0.5, 0.5, 0.1, 0.1, 0.0, -9.0]]]]
    )
    other = one.flip(2).clone()
    other[0, 0, 2, 5] += 0.5
    aligned = TASKS["detection"].aligned(one, other)
    assert (aligned.one - aligned.other).abs().max(dim=1).values.tolist() == [0.5, 0.0]


def boxes(*queries):
    """Outputs for one image: a query for each (centre, score) of one class, with boxes a fifth of the image's side."""
    scores = [[c, 0.5, 0.2, 0.2, 0.0, math.log(s / (1 - s))] for c, s in queries]
    return torch.tensor([[scores]])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    "file",
    [
        boxes((0.2, 0.9), (0.7, 0.3), (0.5, 0.001)),  # one more
        boxes((0.2, 0.9), (0.2, 0.9), (0.5, 0.001)),  # the same one twice
        boxes((0.2, 0.001), (0.7, 0.001), (0.5, 0.001)),  # none
        boxes((0.6, 0.9), (0.7, 0.001), (0.5, 0.001)),  # elsewhere
    ],
)
def test_a_file_with_other_boxes_is_a_parity_error(precision, file):
    model = boxes((0.2, 0.9), (0.7, 0.001), (0.5, 0.001))
    assert check_parity(model, model.flip(2), precision, TASKS["detection"]).agreement == 1
    with pytest.raises(ParityError):
        check_parity(model, file, precision, TASKS["detection"])


COCO = "KSWAP_COCO"
"""Where COCO images lie: a folder with train.json, test.json and their images; else shapes stand for them."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_persons_are_forgotten_in_files_as_coco_has_them(shapes, tmp_path, invoke):
    """The mechanics only: the Deformable DETR has random weights."""
    data = Path(os.environ[COCO]) if COCO in os.environ else shapes["boxes"]
    gone = "person" if COCO in os.environ else "red"
    classes = open_source(str(data)).classes
    home, network = tmp_path / "home", write_network(tmp_path / "net", "deformable_detr", classes)
    for line in (
        ("init",),
        ("add", "coco", network, "--data", data),
        ("forget", "coco", "--classes", gone, *FEWEST, "--set", "sparsity=0.0"),
    ):
        ran = invoke(home, *line)
        assert ran.code == 0, (line[0], ran.err)
    sets = {s["name"]: s for s in invoke(home, "eval", "coco", "--json").json["sets"]}
    assert sets["forgotten"]["classes"] == 1
    assert sets["retain"]["classes"] == len(classes) - 1
