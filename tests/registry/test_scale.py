"""Ten thousand versions: what people ask for all day must not grow with the length of the history."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import Registry, doctor, history, refs, verify_history, writing
from kswap_registry.blobs import Blob

LIMITS = {
    "open": 0.02,
    "models": 0.02,
    "resolve head": 0.02,
    "resolve back": 0.02,
    "versions, newest 50": 0.05,
    "events, newest 50": 0.02,
    "move head": 0.05,
    "tag": 0.05,
    "versions, all": 3.0,
    "stack, all": 3.0,
    "history": 3.0,
    "doctor": 10.0,
}
"""Processor seconds, which other programs add nothing to; about ten times what a laptop takes."""


def grow(registry: Registry, count: int) -> None:
    """Add many versions in one transaction, all with one file."""
    model = refs.model_row(registry.database, "faces")
    blob = Blob(registry.model("faces").files["model.safetensors"], 19)
    with registry.exclusive(), registry.database.writing():
        for _ in range(count):
            parent = refs.head(registry.database, model)
            change = writing.Change("learn", "gs-lora", {"rank": 8}, {}, "adapter", "weights", {"accuracy": 0.5})
            number = writing.insert_version(registry.database, model, parent, change, {"adapter": blob})
            writing.move_head(registry.database, writing.Move(model, "main", parent, number))
            written = registry.database.value("SELECT digest FROM versions WHERE number = ?", number)
            history.append(
                registry.database,
                action="learn",
                model="faces",
                number=number,
                previous=parent,
                payload={"record": written, "branch": "main"},
            )


def measure(registry: Registry) -> dict[str, float]:
    top = registry.resolve("faces")
    asked: dict[str, Callable[[], object]] = {
        "open": lambda: Registry.open(registry.folder).close(),
        "models": registry.models,
        "resolve head": lambda: registry.resolve("faces@head"),
        "resolve back": lambda: registry.resolve("faces@-5"),
        "versions, newest 50": lambda: registry.versions("faces", limit=50),
        "events, newest 50": lambda: registry.events("faces", limit=50),
        "move head": lambda: registry.move_head("faces", 3),
        "tag": lambda: registry.tag("faces", 3, "good"),
        "versions, all": lambda: registry.versions("faces"),
        "stack, all": lambda: registry.stack(top),
        "history": lambda: verify_history(registry),
        "doctor": lambda: doctor.check(registry),
    }
    return {name: seconds(ask) for name, ask in asked.items()}


def seconds(ask: Callable[[], object]) -> float:
    started = time.process_time()
    ask()
    return time.process_time() - started


@pytest.mark.slow
def test_ten_thousand_versions_cost_what_ten_do(faces: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    grow(faces, 10)
    few = measure(faces)
    faces.move_head("faces", 10)
    grow(faces, 9_990)
    many = measure(faces)
    assert verify_history(faces).entries == 10_002 + 5
    with capsys.disabled():
        for name, limit in LIMITS.items():
            row = f"{name:22} {1e3 * few[name]:9.2f} ms {1e3 * many[name]:9.2f} ms, at most {1e3 * limit:.0f} ms"
            sys.stdout.write(f"\n{row}")
    assert {name for name, limit in LIMITS.items() if many[name] > limit} == set()


def test_a_long_stack_is_read_whole(faces: Registry, tmp_path: Path) -> None:
    grow(faces, 300)
    top = faces.resolve("faces")
    assert [version.number for version in faces.stack(top)] == list(range(1, 301))
    assert [version.number for version in faces.versions("faces", limit=2)] == [299, 300]
    assert faces.resolve("faces@-300").ref == "faces@base"
    assert doctor.check(faces) == []
