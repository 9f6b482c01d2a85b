"""What every test may use: a registry with a trained stack, the command line in this process, and no network."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers share two cores
FEW = ("--preset", "few")
"""An operation that is over in a second."""
PRESETS: dict[str, dict[str, object]] = {  # exist in the tests only
    "few": {"steps": 12, "retain_views": 2, "change_views": 2, "sparsity": 0.0},
    "diverging": {"steps": 4, "retain_views": 1, "change_views": 1, "lr": 1e30, "head_lr": 1e30},
    "fewest": {"steps": 2, "retain_views": 1, "change_views": 1, "sparsity": 0.0},
}


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def invoke(home: Path | None, *arguments: object) -> Ran:
    """Run a command line in this process; anything but an exit code is a bug and is raised."""
    from kswapctl.cli import app

    with ExitStack() as stack:
        if set(PRESETS) & set(arguments):
            from kswapctl.methods import METHODS

            for method in METHODS["gs-lora"]:
                stack.enter_context(patch.dict(method.presets, PRESETS))  # type: ignore[arg-type]
        return _invoke(app, home, arguments)


def _invoke(app: Any, home: Path | None, arguments: tuple[object, ...]) -> Ran:
    from typer.testing import CliRunner

    environment = {"KSWAP_HOME": str(home) if home else None, "TERM": "dumb", "COLUMNS": "200"}
    result = CliRunner(env=environment).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            pytest.fail(f"a test connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits as an image folder; not to be changed."""
    from kswapctl.demo.digits import write_folder

    return write_folder(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def base_home(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that holds the model 'digits' at its base; not to be changed."""
    from kswapctl.demo.digits import CHECKPOINT

    home = tmp_path_factory.mktemp("base") / "registry"
    for line in (("init",), ("add", "digits", CHECKPOINT, "--data", digits)):
        assert invoke(home, *line).code == 0
    return home


@pytest.fixture(scope="session")
def trained_home(base_home: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after learning eight and nine and forgetting three, a few steps each; not to be changed."""
    home = tmp_path_factory.mktemp("trained") / "registry"
    shutil.copytree(base_home, home)
    for line in (
        ("learn", "digits", "--data", digits, "--classes", "eight,nine"),
        ("forget", "digits", "--classes", "three"),
    ):
        ran = invoke(home, *line, *FEW)
        assert ran.code == 0, ran.err
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path) -> Path:
    """A copy of the trained registry, to change."""
    return Path(shutil.copytree(trained_home, tmp_path / "registry"))


@pytest.fixture
def fresh(base_home: Path, tmp_path: Path) -> Path:
    """A copy of the registry with the model at its base, to change."""
    return Path(shutil.copytree(base_home, tmp_path / "fresh"))


@pytest.fixture
def run(home: Path) -> Run:
    """Run a command on ``home``."""
    return lambda *arguments: invoke(home, *arguments)


@pytest.fixture
def run_fresh(fresh: Path) -> Run:
    """Run a command on ``fresh``."""
    return lambda *arguments: invoke(fresh, *arguments)


@pytest.fixture
def look(trained_home: Path) -> Iterator[Run]:
    """Run a command that only reads, on the trained registry itself; that it only reads is checked."""
    before = state(trained_home)
    yield lambda *arguments: invoke(trained_home, *arguments)
    assert state(trained_home) == before


@pytest.fixture(name="state")
def state_fixture() -> Callable[[Path], Any]:
    return state


@pytest.fixture(name="invoke", scope="session")
def invoke_fixture() -> Run:
    return invoke


def state(home: Path) -> Any:
    """Everything a registry says of its models, and its files: equal before and after what must change nothing.

    Only the history may grow, by operations that failed.
    """
    from kswap_registry import Registry

    with Registry.open(home, read_only=True) as registry:
        known = [(m, registry.versions(m.name), registry.tags(m.name)) for m in registry.models()]
    files = sorted(
        str(p.relative_to(home)) for part in ("blobs", "tmp") for p in (home / part).rglob("*") if p.is_file()
    )
    return known, files
