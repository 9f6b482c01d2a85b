"""What two versions answer, side by side: which images are shown, what is said of them, and the file."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from kswapctl.analysis.pictures import Column, Pick, draw_side_by_side, pick_samples
from kswapctl.tasks import TASKS, Shown


@pytest.fixture
def drawn(dense_changed, look, tmp_path):
    """Draw a model's predictions; the JSON that is printed, and the picture's width and height."""

    def draw(model, *more):
        run = look if model == "digits" else dense_changed
        ran = run("show-predictions", model, "-o", tmp_path / "shown.png", "--json", "-q", *more)
        assert ran.code == 0, ran.err
        with Image.open(tmp_path / "shown.png") as picture:
            return ran.json, picture.size

    return draw


def test_versions_that_learned_different_classes_are_compared(run, digits, tmp_path):
    """Eight and nine on one branch, dot on another: each answers to what only the other knows."""
    for part in ("train", "test"):
        shutil.copytree(digits / part / "nine", tmp_path / "dots" / part / "dot")
    assert run("branch", "digits@base", "other").code == 0
    learned = run("learn", "digits@other", "--data", tmp_path / "dots", "--preset", "fewest")
    assert learned.code == 0, learned.err
    line = ("show-predictions", "digits@main", "--before", "other", "-o", tmp_path / "p.png", "--images", "1")
    ran = run(*line, "--classes", "eight,dot", "--json", "-q")
    assert ran.code == 0, ran.err
    assert [list(i["marked"]) for i in ran.json["images"]] == [["eight"], ["dot"]]


@pytest.mark.parametrize("model", ["digits", "rt_detr", "segformer"])
def test_learned_forgotten_and_retained_classes_are_shown(drawn, model):
    said, (wide, high) = drawn(model)
    assert {s["set"] for s in said["images"]} == {"learned", "forgotten", "retained"}
    assert all(s["class"] in s["marked"] for s in said["images"])
    panels = 3 * len(said["images"])
    assert wide * high / panels > 200 * 200


def test_the_answers_shown_are_those_of_the_versions(look, drawn):
    """A class that the base does not know cannot be its answer; learned images are answered with it afterwards."""
    said, _ = drawn("digits", "--classes", "eight", "--images", "5")
    assert len(said["images"]) == 5
    assert all("eight" not in s["before"] for s in said["images"])
    assert sum("eight" in s["after"] for s in said["images"]) >= 3


def test_a_vector_picture_can_be_asked_for(dense_changed, tmp_path):
    ran = dense_changed("show-predictions", "segformer", "--classes", "green", "-o", tmp_path / "p.svg")
    assert ran.code == 0, ran.err
    assert "</svg>" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("digits", "--classes", "violet"), 3, "neither version has a class 'violet'"),
        (("digits", "--classes", "eight", "--data", "ones"), 3, "no test image has one of eight"),
        (("digits", "--before", "7"), 3, "7"),
        (("digits", "-o", "shown.jpg"), 2, "cannot draw shown.jpg"),
        (("digits", "-o", "none/shown.png"), 2, "no folder none"),
    ],
)
def test_what_cannot_be_shown_is_named(look, digits, tmp_path, monkeypatch, line, code, said):
    shutil.copytree(digits / "test" / "one", tmp_path / "ones" / "test" / "one")
    monkeypatch.chdir(tmp_path)
    ran = look("show-predictions", *line, *(() if "-o" in line else ("-o", tmp_path / "p.png")))
    assert ran.code == code
    assert said in ran.err
    assert not (tmp_path / "p.png").exists()


def test_a_picture_is_not_replaced_unasked(look, tmp_path):
    (tmp_path / "p.png").write_text("mine")
    assert look("show-predictions", "digits", "-o", tmp_path / "p.png").code == 2
    assert (tmp_path / "p.png").read_text() == "mine"


def test_images_with_the_most_of_a_class_are_picked_and_none_twice():
    """Three boxes of row 0 on image 1, one on image 0; row 1 is on image 1 only, which is taken."""
    box = torch.tensor([[0.0, 1, 0, 0, 1, 1]])
    other = torch.tensor([[1.0, 1, 0, 0, 1, 1]])
    truth = [Shown(boxes=box), Shown(boxes=torch.cat([box, box, box, other]))]
    picks = pick_samples(truth, [("learned", ["a"]), ("retained", ["b"])], {"a": 0, "b": 1}, each=1)
    assert picks == [Pick("learned", "a", 1)]


def test_amounts_are_boxes_shares_of_pixels_or_the_score():
    """Two boxes; half of the four pixels, one of which counts for nothing; a label of 80%."""
    assert Shown(boxes=torch.tensor([[2.0, 1, 0, 0, 1, 1]]).repeat(2, 1)).amounts() == {2: 2}
    assert Shown(pixels=torch.tensor([[3, 3], [1, -1]])).amounts() == {3: 0.5, 1: 0.25}
    assert Shown(label=(4, 0.8)).amounts() == {4: 0.8}
    assert Shown(boxes=torch.empty(0, 6)).amounts() == {}


@pytest.mark.parametrize(
    ("shown", "phrases"),
    [
        (Shown(label=(0, 1.0)), ["eight"]),
        (Shown(label=(0, 0.8)), ["eight 80%"]),
        (Shown(pixels=torch.zeros(2, 2)), ["eight 100%"]),
        (Shown(boxes=torch.tensor([[1.0, 1, 0, 0, 1, 1]])), ["1 nine"]),
    ],
)
def test_each_kind_of_amount_has_its_own_unit(shown, phrases):
    assert Column("marked", ("eight", "nine"), [shown]).phrases(0) == phrases


def test_a_mark_is_said_without_an_amount(look, tmp_path):
    ran = look("show-predictions", "digits", "--classes", "eight", "--images", "1", "-o", tmp_path / "p.png")
    assert ran.code == 0, ran.err
    assert "eight 1" not in ran.out


def test_boxes_below_the_threshold_are_not_drawn():
    """Log-odds 3 and 0 against no object: 95% and 50%, then -2: 12%."""
    outputs = torch.tensor([[[[0.5, 0.5, 0.2, 0.2, 0.0, score] for score in (3.0, 0.0, -2.0)]]])
    (shown,) = TASKS["detection"].show(outputs, (64, 64))
    assert shown.boxes is not None
    assert shown.boxes[:, 1].tolist() == pytest.approx([0.9526, 0.5], abs=1e-4)
    assert shown.boxes[0, 2:].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6])


def test_marks_are_drawn_where_they_are():
    """A box of centre (0.5, 0.5) and size 0.2; a crowd is not drawn."""
    targets = torch.tensor([[[1, 0.5, 0.5, 0.2, 0.2, 0], [1, 0.5, 0.5, 0.9, 0.9, 1], [-1] * 6]])
    (shown,) = TASKS["detection"].show_truth(targets)
    assert shown.boxes is not None
    assert shown.boxes.tolist() == [pytest.approx([1, 1, 0.4, 0.4, 0.6, 0.6])]


def test_a_dollar_in_a_class_s_name_begins_no_formula(tmp_path):
    column = Column("marked", ["US$_$", "b"], [Shown(boxes=torch.tensor([[0.0, 1, 0.1, 0.1, 0.5, 0.5]]))])
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    draw_side_by_side(tmp_path / "p.png", [Pick("retained", "US$_$", 0)], pixels, [column])
    assert (tmp_path / "p.png").stat().st_size
