from pathlib import Path

import pytest
from kswap_registry import BadName, BadValue, Registry

BAD = [
    "",
    "-rf",
    ".hidden",
    "../x",
    "a/b",
    "a\\b",
    "a b",
    "a@b",
    "a:b",
    "a" * 65,
    "a" * 300,
    "\N{SNOWMAN}",
    "a\0",
    "CON",
]
BAD += ["nul.txt", "com1", "base", "Head", "main", "a\n", "\x1b[31m", "é", "١"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused_for_models_tags_and_branches(faces: Registry, checkpoint: Path, name: str) -> None:
    before = faces.events()
    with pytest.raises(BadName) as caught:
        faces.add_model(name, task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": checkpoint})
    assert caught.value.exit_code == 2
    assert len(caught.value.message) < 200
    with pytest.raises(BadName):
        faces.tag("faces", 0, name)
    with pytest.raises(BadName):
        faces.branch("faces", name, 0)
    assert faces.events() == before


def test_a_tag_that_reads_as_a_number_is_refused(faces: Registry) -> None:
    with pytest.raises(BadName):
        faces.tag("faces", 0, "2024")


@pytest.mark.parametrize("name", ["a", "A1", "0day", "vit_tiny-p16.augreg", "x" * 64])
def test_a_good_name_is_taken(faces: Registry, checkpoint: Path, name: str) -> None:
    faces.add_model(name, task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": checkpoint})
    assert faces.resolve(name).model == name


@pytest.mark.parametrize("value", ["a\0b", "\0"])
def test_a_text_with_nul_is_refused(faces: Registry, value: str) -> None:
    with pytest.raises(BadValue) as caught:
        faces.record("faces", "export", {}, command=value)
    assert caught.value.exit_code == 2
    with pytest.raises(BadValue), faces.exclusive(value):
        pass


def test_texts_come_back_as_they_were(faces: Registry) -> None:
    command = "kswapctl \x1b[31m [bold] \N{RIGHT-TO-LEFT OVERRIDE} ünïcode '; DROP TABLE models"
    assert faces.record("faces", "export", {"file": command}, command=command) == faces.events()[-1]
    assert faces.events()[-1].command == faces.events()[-1].payload["file"] == command


def test_bytes_that_are_not_utf8_are_kept_escaped(faces: Registry) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    event = faces.record("faces", "export", {"file": name}, command=name)
    assert event.command == "caf\\udce9"
    assert event.payload == {"file": name}


@pytest.mark.parametrize("payload", [{"a": float("nan")}, {"a": object()}, {"a": {1: 2, "b": 3}}, {"a": Path("x")}])
def test_what_is_not_plain_json_is_refused(faces: Registry, payload: dict[str, object]) -> None:
    with pytest.raises(BadValue):
        faces.record("faces", "export", payload)


def test_json_nested_without_end_is_refused(faces: Registry) -> None:
    nested: list[object] = []
    nested.append(nested)
    with pytest.raises(BadValue):
        faces.record("faces", "export", {"a": nested})
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(BadValue):
        faces.record("faces", "export", {"a": nested})
