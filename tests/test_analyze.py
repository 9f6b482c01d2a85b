"""Figures: what they show is right, and each comes as PNG, SVG and JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kswapctl.analysis.layers import changes_by_block, gradient_by_block
from kswapctl.operations.analyze import draw_study
from kswapctl.spec import Preprocessing
from kswapctl.tasks import TASKS


def test_the_change_is_relative_to_the_block_s_norm() -> None:
    """Weights (3, 4) and (0, 12) moved by (0, 5) and nothing: 5 / 13 for the block, 0 for another."""
    before = {"a.weight": torch.tensor([3.0, 4.0]), "b.weight": torch.tensor([0.0, 12.0]), "c.weight": torch.ones(1)}
    after = before | {"a.weight": torch.tensor([3.0, 9.0])}
    found = changes_by_block(before, after, {"x": ["a", "b"], "y": ["c"]})
    assert [c.relative for c in found] == pytest.approx([5 / 13, 0.0])
    assert [c.change for c in found] == pytest.approx([5.0, 0.0])


def test_a_layer_that_only_some_methods_change_counts_where_it_changed() -> None:
    before = {"x.mlp.weight": torch.tensor([3.0]), "x.attn.weight": torch.tensor([4.0]), "xy.mlp.weight": torch.ones(1)}
    after = before | {"x.attn.weight": torch.tensor([1.0]), "xy.mlp.weight": torch.zeros(1)}
    (found,) = changes_by_block(before, after, {"x": ["x.mlp"]})
    assert (found.change, found.relative) == pytest.approx((3.0, 3 / 5))


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """Two logits w x of one pixel, w = 0, x = 1, class 0: the gradient is (-1/2, 1/2), 1/2 in the mean."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(network[1].weight)
    pixels = torch.full((3, 1, 1, 1), 255, dtype=torch.uint8)
    shape = Preprocessing((1, 1, 1), (0.0,), (1.0,))
    images = (pixels, torch.zeros(3, dtype=torch.long))
    found = gradient_by_block(network, TASKS["classification"], images, [0], shape, {"head": ["1"]})
    assert found == pytest.approx((0.5,))


def test_a_stack_s_figures_are_drawn_with_their_numbers(look, tmp_path: Path) -> None:
    ran = look("analyze", "digits", "-o", tmp_path, "--json", "--quiet")
    assert ran.code == 0, ran.err
    files = [Path(f) for f in ran.json]
    again = look("analyze", "digits@1", "-o", tmp_path)
    assert (again.code, "layers.png exists" in again.err) == (2, True), again.err
    assert {f.name for f in files} == {
        f"{name}.{suffix}" for name in ("layers", "sequence", "samples") for suffix in ("png", "svg", "json")
    }
    assert all(f.stat().st_size > 200 for f in files)
    learned, forgot = json.loads((tmp_path / "layers.json").read_text())
    assert (learned["name"], forgot["name"]) == ("digits@1 learn", "digits@2 forget")
    assert len(learned["blocks"]) == len(learned["change"]) == 6
    assert all(0 <= c < 1 for c in learned["change"])
    assert any(learned["change"])
    assert all(g > 0 and math.isfinite(g) for p in (learned, forgot) for g in p["gradient"])
    sequence = json.loads((tmp_path / "sequence.json").read_text())
    assert sequence["versions"] == ["base", "@1 learn", "@2 forget"]
    assert sequence["accuracy"]["learned"][0] is None
    assert sequence["accuracy"]["retain"][0] > 0.9
    scores = {s["name"]: s["accuracy"] for s in look("eval", "digits", "--json", "-q").json["sets"]}
    assert {n: v[-1] for n, v in sequence["accuracy"].items()} == pytest.approx(scores)


def test_two_stacks_are_compared(look, tmp_path: Path) -> None:
    ran = look("analyze", "digits@1", "digits@2", "-o", tmp_path, "--json", "--quiet")
    assert ran.code == 0, ran.err
    assert {Path(f).name for f in ran.json} >= {"sequence-1.png", "sequence-2.png", "layers.png"}
    assert len(json.loads((tmp_path / "layers.json").read_text())) == 2


@pytest.mark.parametrize(("line", "said"), [((), "takes versions"), (("digits@base",), "is the base")])
def test_there_must_be_something_to_look_at(look, tmp_path: Path, line, said: str) -> None:
    ran = look("analyze", *line, "-o", tmp_path)
    assert ran.code == 2
    assert said in ran.err


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Write a study's results: of each contender the Acc_r and Acc_f of stages after the start; returns its folder."""

    def write(orders: list[str], **contenders: dict[str, tuple[float, float]]) -> Path:
        recipe = {"method": "gs-lora"}
        study = {
            "version": 1, "name": "s", "title": "T", "needs": {}, "base": "b", "data": "d", "orders": orders,
            "columns": ["H"], "splits": [{"name": "five", "forget": [["a"]]}],
            "contenders": [{"name": name, "learn": recipe, "forget": recipe} for name in contenders],
        }  # fmt: skip
        cells = [
            {
                "cell": {"split": "five", "contender": name, "order": orders[0], "seed": seed},
                "error": "",
                "rows": [
                    {"stage": stage, "Acc_r": retained + seed, "Acc_f": forgotten}
                    for stage, (retained, forgotten) in ({"Start": (90.0, 95.0)} | stages).items()
                ],
            }
            for name, stages in contenders.items()
            for seed in (0, 2)
        ]
        (tmp_path / "results.json").write_text(json.dumps({"study": study, "cells": cells}))
        return tmp_path

    return write


def test_a_study_s_trade_off_is_drawn(look, study, tmp_path: Path) -> None:
    study(["f"], one={"F": (88.0, 2.0)})
    ran = look("analyze", "--study", tmp_path, "--json")
    assert ran.code == 0, ran.err
    before, one = json.loads((tmp_path / "trade-off.json").read_text())
    assert before["method"] == "before"
    assert one["Acc_r"][0] == 89.0
    assert look("analyze", "--study", tmp_path).code == 2
    assert look("analyze", "--study", tmp_path, "--overwrite").code == 0
    assert look("analyze", "--study", tmp_path, "-o", tmp_path / "drawn").code == 0
    assert (tmp_path / "drawn" / "trade-off.png").is_file()
    assert look("analyze", "--study", tmp_path, "--split", "six").code == 3
    assert look("analyze", "--study", tmp_path / "none").code == 3
    stored = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(stored | {"cells": []}))
    ran = look("analyze", "--study", tmp_path)
    assert (ran.code, "nothing of the split" in ran.err) == (3, True), ran.err


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "{}", '{"study": {"version": 9}, "cells": []}'])
def test_results_of_something_else_are_refused(look, tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    ran = look("analyze", "--study", tmp_path)
    assert (ran.code, "is not what this release writes of a study" in ran.err) == (4, True)


LEARNED, FORGOT, AGAIN = {"L": (89.0, 94.0)}, {"F": (88.0, 2.0)}, {"F->L": (87.0, 4.0)}


@pytest.mark.parametrize(
    ("contenders", "drawn"),
    [
        ({"one": FORGOT | AGAIN, "two": FORGOT, "three": LEARNED}, {"before": "Start", "one": "F", "two": "F"}),
        ({"one": AGAIN, "two": FORGOT}, {"before": "Start", "one, F->L": "F->L", "two, F": "F"}),
        ({"one": LEARNED}, {"before": "Start"}),
        ({"one": {"F->F": (87.0, 4.0)}}, {"one": "F->F"}),  # before, another class was forgotten
    ],
)
def test_a_trade_off_is_after_the_same_operations_or_says_which(study, contenders, drawn) -> None:
    """Methods may run orders of their own: what only learned has no place, and the last stage of all is drawn."""
    folder = study(["fl", "l", "ff"], **contenders)
    draw_study(folder, "", folder)
    assert {p["method"]: p["stage"] for p in json.loads((folder / "trade-off.json").read_text())} == drawn
