"""The quick way to read a value and typer's own agree wherever the quick way dares."""

from pathlib import Path

import pytest
import typer.main

from kswapctl.cli import app
from kswapctl.cli.values import read_plainly

GROUP = typer.main.get_command(app)
VALUES = ["", "faces", "faces@2", "7", "0", "-3", "2.5", "999999999999", "٣", "nonsense", "true", ".", "no/such", "-"]


def parameters() -> list[tuple[str, object]]:
    commands = {"": GROUP, **GROUP.commands}  # type: ignore[attr-defined]
    return [(f"{name} {p.name}", p) for name, command in commands.items() for p in command.params]


@pytest.mark.parametrize(("name", "parameter"), parameters())
def test_a_plain_value_is_read_as_typer_reads_it(name: str, parameter) -> None:
    for value in [*VALUES, None, parameter.default]:
        plain, converted = read_plainly(parameter, value)
        if plain and value is not None:
            slow = parameter.get_runtime_param().coerce(value, param=parameter, ctx=None)
            assert (converted, type(converted)) == (slow, type(slow)), value


def parameter_of(command: str, name: str) -> object:
    return next(p for p in GROUP.commands[command].params if p.name == name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("list", "limit", "0"),
        ("list", "limit", "many"),
        ("export", "opset", "99"),
        ("learn", "max_retain_drop", "0.5"),
        ("learn", "data", None),
        ("eval", "data", ["a", "b"]),
    ],
)
def test_what_is_not_plain_is_left_to_typer(command: str, name: str, value: object) -> None:
    assert not read_plainly(parameter_of(command, name), value)[0]


@pytest.mark.parametrize(
    "line",
    ["learn digits --data a --data b", "forget digits --classes two --classes=three", "add x y --data a --data b"],
)
def test_a_value_that_would_be_lost_is_refused(look, line: str) -> None:
    ran = look(*line.split())
    assert ran.code == 2
    assert "takes one value, and is given more than once" in " ".join(ran.err.replace("│", " ").split())


def test_an_option_may_be_overridden(look) -> None:
    assert len(look("list", "digits", "--limit", "1", "--limit", "9", "--json").json) == 3


def test_what_may_be_said_twice_is_taken_twice(look, digits: Path) -> None:
    assert look("eval", "digits", "--data", digits, "--data", digits, "--json", "--json").code == 0


def test_plain_values_are_read_quickly() -> None:
    assert read_plainly(parameter_of("list", "limit"), "7") == (True, 7)
    assert read_plainly(parameter_of("list", "model"), "faces") == (True, "faces")
    assert read_plainly(parameter_of("list", "home"), "no/such") == (True, Path("no/such"))
    assert read_plainly(parameter_of("list", "json"), None) == (True, None)


def test_a_number_out_of_range_is_still_a_usage_error(look) -> None:
    ran = look("list", "--limit", "0")
    assert ran.code == 2
    assert "limit" in ran.err
