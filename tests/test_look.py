"""Looking at versions and moving the head, as a user calls the commands."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from kswap_registry import Registry

from kswapctl.demo.digits import CHECKPOINT
from kswapctl.evaluation.predict import predict
from kswapctl.evaluation.scores import evaluate, h_mean
from kswapctl.models.weights import fingerprint, read
from kswapctl.operations.look import test_images as images_of
from kswapctl.operations.versions import load_version
from kswapctl.progress import Silent
from kswapctl.spec import Knowledge
from kswapctl.tasks import TASKS

READING = [
    "list",
    "list digits",
    "models",
    "show digits",
    "show digits@2",
    "show digits@base",
    "log",
    "log digits --limit 2",
    "methods",
    "methods gs-lora",
    "eval digits",
    "eval digits@base --per-class",
    "diff digits@base digits",
]


def logits(home: Path, ref: str) -> torch.Tensor:
    with Registry.open(home, read_only=True) as registry:
        composed = load_version(registry, registry.resolve(ref))
        images = images_of(composed, [], False, Silent())
    return predict(composed.network(), images.pixels, composed.spec.preprocessing)


@pytest.mark.parametrize("line", READING)
def test_json_is_all_that_stands_on_stdout(look, line: str) -> None:
    ran = look(*line.split(), "--json")
    assert ran.code == 0
    assert isinstance(ran.json, list | dict)


@pytest.mark.parametrize("line", READING)
def test_tables_stand_on_stdout_and_progress_does_not(look, line: str) -> None:
    ran = look(*line.split())
    assert ran.code == 0
    assert "digits" in ran.out or "gs-lora" in ran.out
    assert "reading images" not in ran.out


def test_quiet_says_nothing_on_stderr(look) -> None:
    assert "reading images" in look("eval", "digits").err
    assert look("eval", "digits", "--quiet").err == ""


def test_eval_measures_each_set_on_all_its_test_images(look, digits: Path) -> None:
    sets = {s["name"]: s for s in look("eval", "digits", "--json").json["sets"]}
    count = {c.name: len(list(c.iterdir())) for c in (digits / "test").iterdir()}
    assert set(sets) == {"retain", "learned", "forgotten"}
    assert sets["learned"]["images"] == count["eight"] + count["nine"]
    assert sets["forgotten"]["images"] == count["three"]
    assert sets["learned"]["base"] == 0.0
    assert sets["learned"]["accuracy"] > 0.3
    assert sets["forgotten"]["base"] > 0.95 > sets["forgotten"]["accuracy"]


def test_eval_per_class_adds_up_to_the_sets(look) -> None:
    shown = look("eval", "digits", "--per-class", "--json").json
    learned = next(s for s in shown["sets"] if s["name"] == "learned")
    each = [c for c in shown["per_class"] if c["name"] in {"eight", "nine"}]
    right = sum(c["images"] * c["accuracy"] for c in each)
    assert right / learned["images"] == pytest.approx(learned["accuracy"])
    taken = {c["name"]: c["taken_for"] for c in shown["per_class"]}
    name, (other, share) = next((name, named[0]) for name, named in taken.items() if named)
    out = look("eval", "digits", "--per-class").out
    assert re.search(rf"{name} .* {other} {share:.0%}", out), out


def test_eval_of_the_base_is_its_own_measure(look) -> None:
    shown = look("eval", "digits@base", "--json").json
    assert all(s["accuracy"] == s["base"] for s in shown["sets"])
    assert shown["h_mean"] is None


def test_classes_are_matched_by_name_whatever_else_a_folder_holds(look, digits: Path, tmp_path: Path) -> None:
    """A folder with other classes before and between: an index would be off by two."""
    for name in ("aardvark", "nine", "two", "xylophone"):
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / "test" / name).symlink_to(digits / "test" / ("two" if name in {"aardvark", "two"} else "nine"))
    both = [
        {c["name"]: c for c in look("eval", "digits", "--data", data, "--json").json["per_class"]}
        for data in (tmp_path, digits)
    ]
    assert set(both[0]) == {"nine", "two"}
    assert all(both[0][name] == both[1][name] for name in both[0])


def test_diff_tells_accuracy_by_set_and_change_by_block(look) -> None:
    shown = look("diff", "digits@base", "digits", "--json").json
    assert shown["accuracies"]["forgotten"][0] > shown["accuracies"]["forgotten"][1]
    assert [b["name"] for b in shown["blocks"]] == [f"blocks.{i}" for i in range(6)]
    assert any(b["change"] > 0 for b in shown["blocks"])


def test_diff_compares_branches_that_learned_different_classes(run_fresh, digits: Path) -> None:
    """The new row has the same number in both; a version does not know what only the other has learned."""
    assert run_fresh("branch", "digits", "night").code == 0
    for name, classes in (("digits", "eight"), ("digits@night", "nine")):
        line = ("learn", name, "--data", digits, "--classes", classes, "--preset", "few", "-q")
        assert run_fresh(*line).code == 0
    for one, two in (("digits@1", "digits@2"), ("digits@2", "digits@1")):
        before, after = run_fresh("diff", one, two, "--json").json["accuracies"]["learned"]
        assert before == 0.0
        assert after > 0.5


def test_a_version_does_not_differ_from_itself(look) -> None:
    shown = look("diff", "digits@1", "digits@1", "--json").json
    assert all(b["change"] == 0 for b in shown["blocks"])
    assert all(one == two for one, two in shown["accuracies"].values())


def test_list_marks_the_head(run) -> None:
    run("rollback", "digits")
    heads = {v["number"]: v["head"] for v in run("list", "digits", "--json").json}
    assert heads == {0: False, 1: True, 2: False}
    assert "-> " in run("list").out


def test_show_names_the_adapted_layers_and_what_was_done(look) -> None:
    assert "mlp.fc1, mlp.fc2" in look("show", "digits").out
    shown = look("show", "digits@2").out
    assert all(word in shown for word in ("forget", "three", "gs-lora", "seed"))


def test_a_model_without_parameters_is_shown(trained_home: Path) -> None:
    from dataclasses import replace

    from kswapctl.cli.look import _version_tables

    with Registry.open(trained_home, read_only=True) as registry:
        model, version = registry.model("digits"), registry.resolve("digits@2")
    (table,) = _version_tables(replace(model, spec=model.spec | {"parameters": 0}), version, {})
    told = dict(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    assert told["tunable ratio"] == "-"


def test_the_log_tells_every_change_in_order(run) -> None:
    run("rollback", "digits", "--to", "base")
    run("tag", "digits@2", "shipped")
    actions = [e["action"] for e in run("log", "--json").json]
    assert actions == ["init", "add", "learn", "forget", "rollback", "tag"]


def test_rollback_goes_one_step_back_and_forward_again(run) -> None:
    assert run("rollback", "digits", "--json").json == {"head": "digits@1", "was": "digits@2"}
    assert run("rollback", "digits", "--to", "2", "--json").json == {"head": "digits@2", "was": "digits@1"}


def test_at_the_base_there_is_no_step_back(run) -> None:
    run("rollback", "digits", "--to", "base")
    ran = run("rollback", "digits")
    assert ran.code == 2
    assert "digits is at its base" in ran.err


@pytest.mark.parametrize(("to", "head"), [("base", "base"), ("0", "base"), ("1", "1"), ("-2", "base"), ("old", "1")])
def test_rollback_goes_to_a_number_steps_back_the_base_or_a_tag(run, to: str, head: str) -> None:
    run("tag", "digits@1", "old")
    assert run("rollback", "digits", "--to", to, "--json").json["head"] == f"digits@{head}"


def test_after_a_rollback_the_logits_are_those_of_before_bit_for_bit(home: Path, trained_home: Path, run) -> None:
    before = logits(trained_home, "digits@1")
    run("rollback", "digits")
    assert torch.equal(logits(home, "digits"), before)
    run("rollback", "digits", "--to", "2")
    assert torch.equal(logits(home, "digits"), logits(trained_home, "digits@2"))
    assert not torch.equal(logits(home, "digits"), before)


def test_rolled_back_to_the_base_the_tensors_are_those_of_the_checkpoint(home: Path, run) -> None:
    run("rollback", "digits", "--to", "base")
    with Registry.open(home, read_only=True) as registry:
        composed = load_version(registry, registry.resolve("digits"))
    assert fingerprint(composed.weights) == fingerprint(read(CHECKPOINT)[0])


def test_a_tag_names_a_version_and_is_moved_only_by_force(run) -> None:
    assert run("tag", "digits@1", "good").code == 0
    assert run("tag", "digits@2", "good").code == 2
    assert run("tag", "digits@2", "good", "--force").code == 0
    assert run("show", "digits@good", "--json").json["number"] == 2


def test_an_error_is_json_where_json_was_asked_for(look) -> None:
    ran = look("show", "nobody", "--json")
    assert ran.code == ran.json["code"] == 3
    assert ran.json["kind"] == "unknown-model"
    assert ran.err == ""


def test_names_from_strangers_cannot_style_the_terminal(look) -> None:
    err = look("show", "\x1b[31mred[bold]x[/]").err
    assert "\x1b" not in err
    assert "[bold]x" in err


def test_scores_worked_by_hand() -> None:
    """Four images of a, b, b, c; answers a, b, a, a: a 1/1, b 1/2, c 0/1; the base knew a and b only, all right."""
    answers, before = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 1, 0])
    knowledge = Knowledge(("a", "b", "c"), learned={"c": 1}, forgotten={"b": 2})
    result = evaluate(TASKS["classification"], answers, before, torch.tensor([0, 1, 1, 2]), knowledge)
    assert [(s.name, s.images, s.accuracy, s.base) for s in result.sets] == [
        ("retain", 1, 1.0, 1.0),
        ("learned", 1, 0.0, 0.0),
        ("forgotten", 2, 0.5, 1.0),
    ]
    assert result.taken_for == {"b": [("b", 0.5), ("a", 0.5)]}
    assert {c.name: c.taken_for for c in result.per_class} == {"a": (), "b": (("a", 0.5),), "c": (("a", 1.0),)}
    assert result.h_mean == pytest.approx(2 * 1.0 * 0.5 / 1.5)


def test_what_the_base_never_knew_has_no_drop() -> None:
    """Class c was learned on top of the base, which answers a for it, and then forgotten."""
    answers, before = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0])
    knowledge = Knowledge(("a", "b", "c"), learned={"c": 1}, forgotten={"c": 2})
    result = evaluate(TASKS["classification"], answers, before, torch.tensor([0, 1, 2]), knowledge)
    assert (result.set("forgotten").base, result.h_mean) == (0.0, None)


def test_a_class_that_only_the_other_version_has_is_in_no_set() -> None:
    """Pixels a, b and one that is void to the version; the other answers its class x there, and once for b."""
    answers, before = torch.tensor([[[0, 1, 0]]]), torch.tensor([[[0, 2, 2]]])
    targets = torch.tensor([[[0, 1, -1]]])
    result = evaluate(TASKS["segmentation"], answers, before, targets, Knowledge(("a", "b")), ("x",))
    assert [(s.name, s.classes, s.accuracy, s.base) for s in result.sets] == [("retain", 2, 1.0, 0.5)]


@pytest.mark.parametrize(
    ("kept", "drop", "mean"), [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.5, 1.0, 2 / 3)]
)
def test_the_harmonic_mean(kept: float, drop: float, mean: float) -> None:
    assert h_mean(kept, drop) == pytest.approx(mean)


def test_an_evaluation_is_json_all_the_way(look) -> None:
    json.dumps(look("eval", "digits", "--json").json, allow_nan=False)


def test_list_marks_a_version_whose_file_is_gone(run, home: Path) -> None:
    adapter = run("show", "digits@1", "--json").json["files"]["adapter_model.safetensors"]
    (home / "blobs" / adapter[:2] / adapter).unlink()
    listed = run("list", "digits", "--json").json
    assert [v["missing"] for v in listed] == [{}, {"adapter_model.safetensors": "missing"}, {}]
    assert run("list", "digits").out.count("missing") == 1
    assert run("merge", "digits", "-o", home.parent / "m.safetensors").code == 12


def test_older_versions_and_entries_that_are_not_shown_are_told(look) -> None:
    assert "digits has 2 older versions" in look("list", "digits", "--limit", "1").err
    assert "--limit" in look("log", "--limit", "2").err
    assert look("list", "digits").err == look("log").err == ""


def test_the_head_is_listed_though_it_is_older_than_the_latest(run) -> None:
    run("rollback", "digits", "--to", "base")
    ran = run("list", "digits", "--limit", "1", "--json")
    assert [(v["number"], v["head"]) for v in ran.json] == [(0, True), (2, False)]
    assert "digits has 1 older version:" in run("list", "digits", "--limit", "1").err


def test_a_version_where_a_model_is_meant_is_told(look) -> None:
    for line in (("list", "digits@2"), ("log", "digits@2")):
        ran = look(*line)
        assert ran.code == 3
        assert "'digits@2' is a version: name its model" in ran.err


def test_names_from_strangers_make_no_pictures(run, home: Path) -> None:
    ran = run("show", "digits@:smile:")
    assert ":smile:" in ran.err


def test_the_history_of_a_stack_is_evaluated_as_each_version_alone_is(look) -> None:
    found = look("eval", "digits", "--history", "--json").json
    assert [step["version"] for step in found] == ["digits@base", "digits@1", "digits@2"]
    for step in found[1:]:
        alone = look("eval", step["version"], "--json").json
        shared = {s["name"]: s["accuracy"] for s in step["sets"]}
        assert shared == pytest.approx({s["name"]: s["accuracy"] for s in alone["sets"]}, abs=0.002)
    assert "learn eight, nine" in look("eval", "digits", "--history").out


def test_what_no_test_image_shows_is_not_counted_and_told(look, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test" / "zero", tmp_path / "few" / "test" / "zero")
    ran = look("eval", "digits", "--data", tmp_path / "few", "--json")
    assert [(s["name"], s["classes"]) for s in ran.json["sets"]] == [("retain", 1)]
    assert "zero" not in ran.json["unseen"]
    assert {"one", "eight", "three"} <= set(ran.json["unseen"])
    assert "not measured, as no test image shows them: " in ran.err


def test_rollback_takes_a_version_as_it_is_shown(run) -> None:
    assert run("rollback", "digits", "--to", "digits@1", "--json").json == {"head": "digits@1", "was": "digits@2"}


def test_diff_and_history_say_what_they_measure(look) -> None:
    assert look("diff", "digits@base", "digits", "--json").json["metric"] == "accuracy"
    assert "accuracy on test" in look("diff", "digits@base", "digits").out
    assert "accuracy on test" in look("eval", "digits", "--history").out
