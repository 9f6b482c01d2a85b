"""What every test may use: a registry with a trained stack, the command line in this process, and no network."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers share two cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
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


LOOPBACK = "127.0.0.1"
"""Where the tests of the Hub may connect to; no other test connects anywhere."""


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket leads anywhere, and no name is looked up; but the Hub on loopback, in its own tests."""
    allowed = LOOPBACK if request.path.name in ("test_remote.py", "test_ship_faults.py") else ""

    def guard(name: str, place: object, host_of: Callable[..., object]) -> None:
        real = getattr(place, name)

        def guarded(*arguments: Any, **options: Any) -> Any:
            if host_of(*arguments) not in (None, allowed):
                pytest.fail(f"a test connects to {arguments[:2]}")
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, guarded)

    def host(self: socket.socket, address: Any) -> object:
        return None if self.family == socket.AF_UNIX else address[0]

    guard("connect", socket.socket, host)
    guard("connect_ex", socket.socket, host)
    guard("getaddrinfo", socket, lambda name, *_: name)


@pytest.fixture(scope="session")
def _own_hub_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """These are read once, when huggingface_hub is first imported; where that has happened, they are set there."""
    values = {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in values.items():
            patched.setenv(name, value)
        from huggingface_hub import constants

        patched.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patched.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask huggingface.co who is calling
        patched.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patched.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
        yield


@pytest.fixture
def hub(_own_hub_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A small Hub on loopback."""
    spec = importlib.util.spec_from_file_location("hub_on_loopback", Path(__file__).with_name("hub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hub_on_loopback", module)
    spec.loader.exec_module(module)
    with module.serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield running


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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures of coloured rectangles with ``boxes`` and with ``masks``; not to be changed."""
    from shapes import write_shapes

    boxes, masks = write_shapes(tmp_path_factory.mktemp("shapes"))
    return {"boxes": boxes, "masks": masks}


@pytest.fixture(scope="session")
def dense_home(shapes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a detector and a segmenter of random weights; not to be changed."""
    from shapes import NETWORKS, write_network

    folder = tmp_path_factory.mktemp("dense")
    assert invoke(folder / "home", "init").code == 0
    for kind in ("rt_detr", "segformer"):
        data = shapes[NETWORKS[kind][1]]
        ran = invoke(folder / "home", "add", kind, write_network(folder / kind, kind), "--data", data)
        assert ran.code == 0, ran.err
    return folder / "home"


@pytest.fixture(scope="session")
def dense_changed_home(dense_home: Path, shapes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after each learned blue and forgot red, in two steps; not to be changed."""
    from shapes import NETWORKS

    home = Path(shutil.copytree(dense_home, tmp_path_factory.mktemp("changed") / "home"))
    for kind in ("rt_detr", "segformer"):
        data = shapes[NETWORKS[kind][1]]
        for line in (("learn", kind, "--data", data, "--classes", "blue"), ("forget", kind, "--classes", "red")):
            ran = invoke(home, *line, "--preset", "fewest", "--set", "cycles=1")
            assert ran.code == 0, ran.err
    return home


@pytest.fixture
def dense_changed(dense_changed_home: Path, tmp_path: Path) -> Run:
    """Run a command on a copy of the registry with the changed detector and segmenter."""
    home = Path(shutil.copytree(dense_changed_home, tmp_path / "home"))
    return lambda *arguments: invoke(home, *arguments)


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
