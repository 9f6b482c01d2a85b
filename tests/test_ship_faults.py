"""Kill, fail and interrupt merge, export, bundle, import and push at every named point, then look at what is left."""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kswap_registry import ReadOnly, Registry, RegistryError, doctor, faults

import kswapctl.operations
from kswapctl.errors import KswapError
from kswapctl.export import manifest as listing
from kswapctl.export.onnx import Parity
from kswapctl.operations import points, receive, remote, share, ship
from kswapctl.progress import Silent

EXITS = {"kill": -9, "enospc": 16, "eio": 16, "sigint": 130}
PREFIXES = ("merge.", "export.", "bundle.", "import.", "push.", "adopt.")
RUNS: list[tuple[str, str, str]] = []
"""Command, point and mode of each."""
HUB = "hf-hub:me/digits"
SLOW = pytest.mark.slow
"""Of what an import takes the same way, from a file."""
OTHERS = ("README.md", ".gitattributes")
"""What a repository of the Hub holds besides."""
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's own


@dataclass(frozen=True)
class Scenario:
    """A command, and the file or folder that it makes; empty where it changes the registry."""

    run: Callable[[Registry, Path], object]
    makes: str
    fresh: bool = False
    """Runs on a registry that has only the base."""


def merge(registry: Registry, place: Path) -> None:
    ship.merge(registry, registry.resolve("digits"), place / "out.safetensors", True, "merge")


def export(registry: Registry, place: Path) -> None:
    request = ship.Export(place / "out.onnx", overwrite=True)
    ship.export(registry, registry.resolve("digits"), request, "export", Silent())


def bundle(registry: Registry, place: Path) -> None:
    share.bundle(registry, registry.resolve("digits"), share.Wish(place / "out.kswap", overwrite=True), "bundle")


def push(registry: Registry, place: Path) -> None:
    version = registry.resolve("digits")
    remote.push(registry, version, str(place / "out"), with_base=False, public=False, command="push")


def push_to_the_hub(registry: Registry, place: Path) -> None:
    remote.push(registry, registry.resolve("digits"), HUB, with_base=False, public=False, command="push")


def pull_from_the_hub(registry: Registry, place: Path) -> None:
    remote.pull(registry, HUB, "digits", "", "pull", Silent())


def take(registry: Registry, place: Path) -> None:
    remote.take(registry, place / "in.kswap", remote.Trust(), "import", Silent())


SCENARIOS = {
    "merge": Scenario(merge, "out.safetensors"),
    "export": Scenario(export, "out.onnx"),
    "bundle": Scenario(bundle, "out.kswap"),
    "push": Scenario(push, "out/manifest.json"),
    "import": Scenario(take, "", fresh=True),
    "push to the Hub": Scenario(push_to_the_hub, ""),
    "pull from the Hub": Scenario(pull_from_the_hub, "", fresh=True),
}


@pytest.fixture(scope="module")
def parcel(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to import."""
    folder = tmp_path_factory.mktemp("parcel")
    with Registry.open(Path(shutil.copytree(trained_home, folder / "registry"))) as registry:
        bundle(registry, folder)
    return folder / "out.kswap"


@pytest.fixture(autouse=True)
def _cheap_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the order of writing, not the exporter."""

    def write(network: Any, spec: Any, path: Path, opset: int, metadata: Any) -> None:
        path.write_text("a network")

    monkeypatch.setattr(ship, "write_onnx", write)
    monkeypatch.setattr(ship, "test_images", lambda *_: None)
    monkeypatch.setattr(ship, "_spread", lambda *_: None)
    monkeypatch.setattr(ship, "predict", lambda *_: None)
    monkeypatch.setattr(ship, "run_onnx", lambda *_: None)
    monkeypatch.setattr(ship, "check_parity", lambda *_: Parity(1, 0.0, 1.0))


def prepare(name: str, place: Path, homes: tuple[Path, Path], parcel: Path) -> None:
    place.mkdir()
    shutil.copytree(homes[SCENARIOS[name].fresh], place / "registry")
    shutil.copy(parcel, place / "in.kswap")


def run(name: str, place: Path) -> None:
    with Registry.open(place / "registry") as registry:
        SCENARIOS[name].run(registry, place)


@pytest.mark.parametrize("name", ["merge", "export", "bundle", "push"])
def test_what_could_not_be_recorded_is_not_begun(name: str, tmp_path: Path, trained_home: Path) -> None:
    with Registry.open(trained_home, read_only=True) as registry, pytest.raises(ReadOnly):
        SCENARIOS[name].run(registry, tmp_path)
    assert not list(tmp_path.iterdir())


def run_in_child(name: str, place: Path, fault: str) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ[faults.VARIABLE] = fault
            torch.set_num_threads(1)
            run(name, place)
            status = 0
        except (KswapError, RegistryError) as error:
            status = error.exit_code
        except OSError:  # the command line makes a disk error of it
            status = 16
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seen(place: Path) -> list[object]:
    """Versions, heads and what the history tells, without times."""
    with Registry.open(place / "registry", read_only=True) as registry:
        versions = [v.fingerprint for v in registry.versions("digits")]
        told = [(e.action, e.number) for e in registry.events()]
        return [versions, registry.branches("digits"), told]


def trace(name: str, place: Path, patch: pytest.MonkeyPatch) -> list[str]:
    reached: list[str] = []
    for module in list(sys.modules.values()):
        if vars(module).get("point") is faults.point and module not in (faults, points):
            patch.setattr(module, "point", reached.append)
    run(name, place)
    return [point for point in dict.fromkeys(reached) if point.startswith(PREFIXES)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW) if n.startswith("pull") else n for n in SCENARIOS])
def test_a_fault_at_any_point_leaves_the_old_or_the_new_state(
    name: str, base_home: Path, trained_home: Path, parcel: Path, tmp_path: Path, hub: Any
) -> None:
    homes = (trained_home, base_home)
    if name.startswith("pull"):
        prepare("push", tmp_path / "pushed", homes, parcel)
        with Registry.open(tmp_path / "pushed" / "registry") as registry:
            push_to_the_hub(registry, tmp_path)
    pushed = copy.deepcopy(hub.repositories)
    prepare(name, tmp_path / "traced", homes, parcel)
    before = seen(tmp_path / "traced")
    with pytest.MonkeyPatch.context() as patch:
        reached = trace(name, tmp_path / "traced", patch)
    after = seen(tmp_path / "traced")
    assert reached
    for point in reached:
        for mode, code in EXITS.items():
            place = tmp_path / f"{point}-{mode}"
            hub.repositories.clear()
            hub.repositories.update(copy.deepcopy(pushed))
            prepare(name, place, homes, parcel)
            assert run_in_child(name, place, f"{point}:{mode}") == code, point
            assert seen(place) in (before, after), point
            check_whole(name, place, tmp_path / "traced")
            check_hub(hub)
            run(name, place)  # the next command works, without anybody unlocking or repairing
            assert seen(place)[:2] == after[:2], point
            with Registry.open(place / "registry") as registry:
                assert [f for f in doctor.check(registry, deep=True) if f.serious] == []
            RUNS.append((name, point, mode))
            shutil.rmtree(place)


def check_hub(hub: Any) -> None:
    """What the Hub holds is a whole manifest with all its files, or nothing of ours."""
    for name in hub.repositories:
        files = hub.head(name)
        if listing.NAME in files:
            listing.check_names([n for n in files if n not in OTHERS], listing.load(files[listing.NAME]))


def check_whole(name: str, place: Path, done: Path) -> None:
    """What the command makes is not there, or is all there."""
    made = SCENARIOS[name].makes
    if made and (place / made).exists():
        assert (place / made).read_bytes() == (done / made).read_bytes()


def test_every_point_in_the_code_is_reached(parcel: Path) -> None:
    folder = Path(kswapctl.operations.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    written = set(re.findall(r'\bpoint\("([^"]+)"\)', source))
    assert written == {name for name in faults.POINTS if name.startswith(PREFIXES[:-1])}
    if {name for name, _, _ in RUNS} >= set(SCENARIOS) - {"pull from the Hub"}:  # else another worker ran some of them
        assert written <= {point for _, point, _ in RUNS}


def test_the_faults_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert receive.point is faults.point
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(RUNS)} faults survived: {len({n for n, _, _ in RUNS})} commands, {len(EXITS)} modes\n"
        )
