"""What is typed arrives: each option of learn, forget and swap in the request that is made of it."""

import dataclasses
import json
import operator
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from kswapctl.cli.change import _what_is_left
from kswapctl.cli.options import command_line, names
from kswapctl.errors import nearest
from kswapctl.operations.surgery import share
from kswapctl.spec import Change, listed

LEARNING = {
    "--classes": ("classes", ("eight",), "eight"),
    "--data": ("source", "images", "images"),
    "--retain-data": ("retain_source", "others", "others"),
    "--retain-share": ("rehearsal.share", 0.3, "0.3"),
    "--retain-per-class": ("rehearsal.per_class", 7, "7"),
    "--target-learn": ("targets.learn", 0.9, "0.9"),
    "--max-retain-drop": ("targets.retain_drop", 0.02, "0.02"),
    "--method": ("method", "lwf", "lwf"),
    "--preset": ("preset", "fast", "fast"),
    "--set": ("settings", {"rank": "4"}, "rank=4"),
    "--blocks": ("blocks", "last:2", "last:2"),
    "--seed": ("seed", 5, "5"),
    "--again": ("again", True, None),
    "--skip-bad": ("skip_bad", True, None),
    "--device": ("device", "cpu", "cpu"),
    "--precision": ("precision", "fp32", "fp32"),
    "--cache-gb": ("cache_gb", 1.5, "1.5"),
    "--cache-dir": ("cache_dir", "kept", "kept"),
}
"""Of each option: where it goes in the request, as what, and how it is typed."""
FORGETTING = {k: v for k, v in LEARNING.items() if k != "--target-learn"} | {
    "--target-forget": ("targets.forget", 0.03, "0.03")
}
SWAPPING = {k: v for k, v in (LEARNING | FORGETTING).items() if k not in {"--classes", "--data", "--retain-data"}}


@pytest.fixture
def asked(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Change]]:
    """The requests that a command line makes; nothing is done."""
    from kswapctl.operations import change

    def ask(*line: object) -> list[Change]:
        seen: list[Change] = []
        monkeypatch.setattr(change, "apply_all", lambda registry, name, changes, *rest: seen.extend(changes) or [])
        ran = run(*line)
        assert ran.code == 0, ran.err
        return seen

    return ask


def typed(options: Mapping[str, tuple[str, object, str | None]]) -> list[str]:
    """The options as typed."""
    return [text for name, (_, _, value) in options.items() for text in (name, value) if text is not None]


@pytest.mark.parametrize(("command", "options"), [("learn", LEARNING), ("forget", FORGETTING)])
def test_every_option_arrives_in_the_request(asked, command: str, options) -> None:
    (change,) = asked(command, "digits", *typed(options))
    assert {name: operator.attrgetter(place)(change) for name, (place, _, _) in options.items()} == {
        name: value for name, (_, value, _) in options.items()
    }


def test_every_option_of_a_swap_arrives_in_both_requests(asked) -> None:
    line = ("swap", "digits", "--learn", "new", "--classes", "eight", "--forget", "three", "--data", "old")
    learn, forget = asked(*line, *typed(SWAPPING))
    for name, (place, value, _) in SWAPPING.items():
        own = {"--target-learn": [learn], "--target-forget": [forget]}.get(name, [learn, forget])
        assert [operator.attrgetter(place)(change) for change in own] == [value] * len(own), name
    assert (learn.kind, learn.classes, learn.source, learn.retain_source) == ("learn", ("eight",), "new", "old")
    assert (forget.kind, forget.classes, forget.source, forget.retain_source) == ("forget", ("three",), "old", "")


def test_a_swap_sets_hyper_parameters_of_both_or_of_one(asked, look) -> None:
    line = ("swap", "digits", "--learn", "new", "--forget", "three")
    sets = ("--set", "learn.rank=2", "--set", "rank=4", "--set", "forget.bound=1.2")
    learn, forget = asked(*line, *sets)
    assert (learn.settings, forget.settings) == ({"rank": "2"}, {"rank": "4", "bound": "1.2"})
    ran = look(*line, "--set", "lern.rank=2")
    assert (ran.code, "learn.NAME" in ran.err) == (2, True)
    assert look(*line[:-1], ",").code == 2
    for setting, way in (("bound=2", "forget.bound"), ("head_lr=1", "learn.head_lr")):
        ran = look(*line, "--set", setting)
        assert (ran.code, f"--set {way}=VALUE" in ran.err) == (2, True), ran.err
    assert look(*line, "--order", "l").code == 2


def test_a_swap_whose_second_operation_cannot_be_done_does_not_begin(run_fresh, digits: Path) -> None:
    line = ("swap", "digits", "--learn", digits, "--data", digits, "--set", "steps=1", "--set", "cycles=1")
    for options, said in (
        (("--classes", "eight", "--forget", "two", "--set", "forget.blocks=last:99"), "names no blocks"),
        (("--forget", "nine"), "class 'nine' is both to be learned and to be forgotten"),
    ):
        ran = run_fresh(*line, *options)
        assert said in ran.err, ran.err
    assert run_fresh("show", "digits", "--json").json["head"] == 0


def test_the_demo_leaves_another_s_model_alone(tmp_path: Path, invoke) -> None:
    home = tmp_path / "home"
    invoke(home, "init")
    assert invoke(home, "add", "digits", "test_vit", "--no-pretrained", "--classes", "a,b").code == 0
    ran = invoke(home, "demo", "--folder", tmp_path / "told")
    assert (ran.code, "another model digits" in ran.err) == (2, True), ran.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a, b,", ("a", "b")),
        ('goldfish,"tench, Tinca tinca"', ("goldfish", "tench, Tinca tinca")),
        ('"a, b", c', ("a, b", "c")),
        ('a\nb,"c', ("a", "b", "c")),
        ('5" nail', ('5" nail',)),
    ],
)
def test_a_name_with_a_comma_stands_in_quotes(text: str, said: tuple[str, ...]) -> None:
    assert names(text) == said
    assert names(listed(said)) == said


def test_a_hint_names_a_class_as_it_is_typed() -> None:
    assert nearest("nine", ["nine,9"]) == """did you mean '"nine,9"'?"""


def test_the_history_has_the_command_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["kswapctl", "forget", "digits", "--classes", 'a b, "x,y"']
    monkeypatch.setattr(sys, "argv", line)
    assert shlex.split(command_line()) == line


@pytest.mark.parametrize("line", ["--seed 4294967296", "--seed 18446744073709551616"])
def test_a_seed_beyond_what_draws_take_is_refused(look, line: str) -> None:
    assert look("learn", "digits", "--data", "x", *line.split()).code == 2


@pytest.mark.parametrize(
    ("value", "said"), [(0.955, "95.5%"), (0.005, "0.5%"), (0.995, "99.5%"), (0.95, "95%"), (0, "0%")]
)
def test_a_target_is_told_as_it_was_asked_for(value: float, said: str) -> None:
    assert share(value) == said


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (("add", "m", "resnet18", "--architecture", "resnet34"), "leave --architecture away"),
        (("add", "m", "base.safetensors", "--no-pretrained"), "leave --no-pretrained away"),
        (("add", "m", "resnet18", "--classes", "a", "--classes-file", "c.txt"), "one of the two"),
        (("analyze", "--study", "s", "--data", "x"), "leave --data"),
        (("rollback", "digits@night"), "kswapctl branch digits night --to"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run, line: tuple[str, ...], hint: str) -> None:
    ran = run(*line)
    assert (ran.code, hint in " ".join(ran.err.split())) == (2, True), ran.err


def test_the_demo_tells_its_story_twice(tmp_path: Path, invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from kswapctl.operations import demo

    little = {"cycles": "1", "steps": "2", "retain_views": "1", "change_views": "1"}
    whole = demo.apply
    monkeypatch.setattr(
        demo, "apply", lambda r, m, c, *rest: whole(r, m, dataclasses.replace(c, settings=little), *rest)
    )
    for last in (2, 4):
        ran = invoke(tmp_path / "home", "demo", "--folder", tmp_path / "told", "--json")
        assert ran.code == 0, ran.err
        assert set(ran.json) == {"evaluation", "onnx", "picture", "parity"}
        assert all(Path(ran.json[name]).stat().st_size for name in ("onnx", "picture"))
        listed = invoke(tmp_path / "home", "list", "digits", "--json").json
        assert [v["number"] for v in listed if v["head"]] == [last]
        assert {v["parent"] for v in listed if v["number"] == last - 1} == {0}  # it began at the base


@pytest.mark.parametrize(
    "line",
    [
        ("diff", "digits@1", "digits"),
        ("analyze", "digits", "-o", "figures"),
        ("show-predictions", "digits", "-o", "shown.png", "--json"),
    ],
)
def test_an_image_that_cannot_be_read_is_left_out_where_that_is_asked(
    look, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, "copy")
    (tmp_path / "copy" / "test" / "eight" / "bad.png").write_bytes(b"<html>")
    ran = look(*line, "--data", "copy")
    assert (ran.code, "bad.png cannot be read" in ran.err + ran.out) == (4, True)
    ran = look(*line, "--data", "copy", "--skip-bad")
    assert ran.code == 0, ran.err


def test_an_image_s_name_need_not_be_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    from kswapctl.cli import render

    render.print_json({"key": "caf\udce9.png"})
    assert json.loads(capsys.readouterr().out) == {"key": "caf\udce9.png"}


@pytest.mark.parametrize(("audited", "said"), [(True, "what its features hold"), (False, "what its classifier reads")])
def test_how_deep_it_was_forgotten_is_said_by_what_the_images_have(audited: bool, said: str) -> None:
    version = SimpleNamespace(method="erase", ref="m@1")
    assert said in _what_is_left(version, audited)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        ("audit", "digits", "-o", "audit"),
        ("analyze", "digits", "-o", "figures"),
        ("backup", "copy.tar"),
        ("merge", "digits", "-o", "m.safetensors"),
    ],
)
def test_nothing_is_written_into_the_registry(run, home: Path, line: tuple[str, ...], state) -> None:
    ran = run(*line[:-1], home / line[-1])
    assert (ran.code, "inside the registry" in ran.err) == (2, True)


def test_a_relative_step_of_main_is_one_of_its_own(run) -> None:
    assert run("branch", "digits", "main", "--to", "-1", "--json").json == {"main": "digits@1"}


def test_a_relative_step_of_a_branch_is_along_it(run) -> None:
    run("branch", "digits@2", "night")
    run("rollback", "digits", "--to", "base")
    moved = run("branch", "digits", "night", "--to", "-1", "--json")
    assert moved.json == {"main": "digits@base", "night": "digits@1"}, moved.err
    assert run("branch", "digits", "night", "--to", "-2").code == 2
    assert run("branch", "digits", "day", "--to", "-1").code == 3
