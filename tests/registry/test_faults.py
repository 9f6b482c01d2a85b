"""Kill, fail and interrupt every writing path at every named point, then look at what is left."""

import gzip
import hashlib
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import kswap_registry
import pytest
from kswap_registry import (
    AlreadyExists,
    NoRegistry,
    Registry,
    RegistryError,
    adoption,
    cleanup,
    copies,
    doctor,
    faults,
    purge,
    writing,
)

DATA = Path(__file__).parent / "data"
RUNS: list[str] = []
EXITS = {"kill": -9, "enospc": 16, "eio": 16, "sigint": 130}


@dataclass(frozen=True)
class Scenario:
    """A writing path: what must be there, what runs, what may be compared before and after."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]


def nothing(home: Path) -> None:
    home.mkdir()


def base(home: Path) -> None:
    nothing(home)
    (home / "model").write_text("weights of the base")
    with Registry.create(home / "registry") as registry:
        add(registry, "faces", home)


def grown(home: Path) -> None:
    base(home)
    with Registry.open(home / "registry") as registry:
        learn(registry, "one")
        learn(registry, "two")


def littered(home: Path) -> None:
    grown(home)
    shard = home / "registry" / "blobs" / "00"
    shard.mkdir()
    (shard / ("00" * 32)).write_text("nobody refers to this")
    (home / "registry" / "tmp" / "left").mkdir()
    (home / "registry" / "tmp" / "left" / "part").write_text("of an adapter")


def replaced(home: Path) -> None:
    """The head of faces is the base of clean, and something lies around."""
    littered(home)
    (home / "merged").write_text("weights of faces, merged")
    with Registry.open(home / "registry") as registry:
        registry.add_model(
            "clean", task="t", source="s", spec={}, classes=["a"], fingerprint="w", files={"model": home / "merged"}
        )


def backed_up(home: Path) -> None:
    grown(home)
    with Registry.open(home / "registry") as registry:
        copies.backup(registry, home / "backup")
    shutil.rmtree(home / "registry")


def old(home: Path) -> None:
    nothing(home)
    folder = home / "registry"
    (folder / "tmp").mkdir(parents=True)
    (folder / "key").write_text("00" * 32)
    (folder / "key").chmod(0o600)
    (folder / "registry.db").write_bytes(gzip.decompress((DATA / "schema1.db.gz").read_bytes()))
    for content in ("weights of the base", "one", "two"):
        store(folder, content)


def store(folder: Path, content: str) -> None:
    digest = hashlib.sha256(content.encode()).hexdigest()
    path = folder / "blobs" / digest[:2] / digest
    path.parent.mkdir(parents=True)
    path.write_text(content)


def add(registry: Registry, name: str, home: Path) -> None:
    registry.add_model(
        name, task="t", source="s", spec={}, classes=["a"], fingerprint="f", files={"model": home / "model"}
    )


def learn(registry: Registry, content: str) -> None:
    with registry.operation("faces", kind="learn", method="gs-lora", spec={}) as operation:
        adapter = operation.folder / "adapter"
        adapter.write_text(content)
        operation.commit({"adapter": adapter}, state={}, adapter=content, weights="w", metrics={"accuracy": 1})


def adopt(registry: Registry, home: Path) -> None:
    checkpoint = writing.Checkpoint("signs", "t", "s", {}, ["a"], "f")
    landing = adoption.Landing("signs", branch="theirs", checkpoint=checkpoint, files={"model": home / "model"})
    changes = [writing.Change("learn", "gs-lora", {}, {}, name, "w", {"accuracy": 1}) for name in ("one", "two")]
    arrivals = [adoption.Arrival(change, {"adapter": home / "model"}, {"from": "elsewhere"}) for change in changes]
    adoption.adopt(registry, landing, arrivals)


def learn_aside(registry: Registry) -> None:
    with registry.operation("faces", kind="learn", method="gs-lora", spec={}) as operation:
        operation.stand_on(1)
        adapter = operation.folder / "adapter"
        adapter.write_text("aside")
        fields = {"state": {}, "adapter": "aside", "weights": "w", "metrics": {"accuracy": 1}}
        operation.commit({"adapter": adapter}, **fields, onto="aside")


def abandon(registry: Registry) -> None:
    with registry.operation("faces", kind="learn", method="gs-lora", spec={}):
        pass


def inside(change: Callable[[Registry], object]) -> Callable[[Path], None]:
    def run(home: Path) -> None:
        with Registry.open(home / "registry", timeout=1) as registry:
            change(registry)

    return run


SCENARIOS = {
    "create": Scenario(nothing, lambda home: Registry.create(home / "registry").close()),
    "add": Scenario(base, lambda home: inside(lambda registry: add(registry, "signs", home))(home)),
    "learn": Scenario(grown, inside(lambda registry: learn(registry, "three"))),
    "learn aside": Scenario(grown, inside(learn_aside)),
    "adopt": Scenario(grown, lambda home: inside(lambda registry: adopt(registry, home))(home)),
    "abandon": Scenario(grown, inside(abandon)),
    "rollback": Scenario(grown, inside(lambda registry: registry.move_head("faces", 1))),
    "tag": Scenario(grown, inside(lambda registry: registry.tag("faces", 1, "good"))),
    "branch": Scenario(grown, inside(lambda registry: registry.branch("faces", "dev", 1))),
    "record": Scenario(grown, inside(lambda registry: registry.record("faces", "export", {}))),
    "migrate": Scenario(old, inside(lambda registry: None)),
    "fix": Scenario(littered, inside(doctor.fix)),
    "gc": Scenario(littered, inside(lambda registry: cleanup.gc(registry, timedelta(0), dry_run=False))),
    "purge": Scenario(replaced, inside(lambda registry: purge.purge(registry, "faces", confirm="faces"))),
    "backup": Scenario(grown, lambda home: inside(lambda registry: copies.backup(registry, home / "backup"))(home)),
    "restore": Scenario(backed_up, lambda home: copies.restore(home / "backup", home / "registry").close()),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One prepared home per way of preparing, to be copied."""
    ways = {scenario.prepare.__name__: scenario.prepare for scenario in SCENARIOS.values()}
    homes = {}
    for name, prepare in ways.items():
        homes[name] = tmp_path_factory.mktemp("template") / "home"
        prepare(homes[name])
    return homes


@pytest.fixture(scope="module")
def reached(
    templates: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[str], list[str]]]:
    """For each scenario the points it comes by, and the state it ends in."""
    found = {}
    for name, scenario in SCENARIOS.items():
        home = tmp_path_factory.mktemp("trace") / "home"
        shutil.copytree(templates[scenario.prepare.__name__], home)
        found[name] = (_trace(scenario, home), _state(home))
    return found


def test_every_point_is_reached_by_a_scenario(reached: dict[str, tuple[list[str], list[str]]]) -> None:
    covered = {point for points, _ in reached.values() for point in points}
    assert covered == _points_in_the_code()


def test_every_point_in_the_code_is_declared() -> None:
    assert _points_in_the_code() <= set(faults.POINTS)  # other packages may declare more


def test_a_point_that_is_not_declared_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="not declared"):
        faults.point("nowhere")


def test_a_sleeping_point_gives_others_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv(faults.VARIABLE, "record.after_commit:sleep")
    faults.point("record.after_commit")
    assert slept == [2.0]


@pytest.mark.parametrize("mode", EXITS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_point_leaves_the_old_or_the_new_state(
    name: str,
    mode: str,
    templates: dict[str, Path],
    reached: dict[str, tuple[list[str], list[str]]],
    tmp_path: Path,
) -> None:
    scenario = SCENARIOS[name]
    template = templates[scenario.prepare.__name__]
    points, after = reached[name]
    for point in dict.fromkeys(points):
        home = tmp_path / point
        shutil.copytree(template, home)
        assert _run_in_child(scenario, home, f"{point}:{mode}") == EXITS[mode], point
        left = _state(home)
        assert left in (_state(template), after), point
        with suppress(AlreadyExists):  # it had been done before the fault
            scenario.run(home)  # the next command works, without anybody unlocking or repairing
        assert left == after or _state(home) == after, point
        assert _serious(home) == [], point
        RUNS.append(f"{name} {point} {mode}")


def test_a_blob_torn_by_a_power_cut_is_healed_by_repeating(templates: dict[str, Path], tmp_path: Path) -> None:
    """Killed after the rename; the content was never synced, and its tail comes back as zeros."""
    home = tmp_path / "home"
    shutil.copytree(templates["grown"], home)
    assert _run_in_child(SCENARIOS["learn"], home, "blob.after_rename:kill") == -9
    digest = hashlib.sha256(b"three").hexdigest()
    blob = home / "registry" / "blobs" / digest[:2] / digest
    blob.chmod(0o644)
    blob.write_bytes(b"thr\0\0")
    SCENARIOS["learn"].run(home)
    assert blob.read_bytes() == b"three"
    assert _serious(home) == []


def test_the_faults_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        counts = f"{len(SCENARIOS)} writing paths, {len(_points_in_the_code())} points, {len(EXITS)} modes"
        sys.stdout.write(f"\n{len(RUNS)} faults survived: {counts}\n")


def _points_in_the_code() -> set[str]:
    source = "".join(path.read_text() for path in Path(kswap_registry.__file__).parent.glob("*.py"))
    return set(re.findall(r'\bpoint\("([^"]+)"\)', source))


def _run_in_child(scenario: Scenario, home: Path, fault: str) -> int:
    child = os.fork()
    if child == 0:
        os.environ[faults.VARIABLE] = fault
        status = 1
        try:
            scenario.run(home)
            status = 0
        except RegistryError as error:
            status = error.exit_code
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _trace(scenario: Scenario, home: Path) -> list[str]:
    points: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, module in sys.modules.items():
            if name.startswith("kswap_registry.") and name != "kswap_registry.faults" and hasattr(module, "point"):
                patch.setattr(module, "point", points.append)
        scenario.run(home)
    return points


def _state(home: Path) -> list[str]:
    """What anybody can see: rows and whether a backup is there, without times and hashes of times."""
    seen = [f"backup {path.exists()}" for path in [home / "backup"]]
    database = home / "registry" / "registry.db"
    if not database.exists():
        return seen
    with sqlite3.connect(database) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        seen.append(f"schema {version}")
        for query in _SEEN[version]:
            seen += [repr(row) for row in connection.execute(query)]
    connection.close()
    return seen


_ROWS = (
    "SELECT name, task FROM models",
    "SELECT model, number, parent, adapter FROM versions",
    "SELECT version, name, digest FROM files",
    "SELECT version, name, value FROM metrics",
    "SELECT model, name, number FROM tags",
    "SELECT count(*) FROM operations WHERE state = 'done'",
    "SELECT DISTINCT action, number, previous FROM history ORDER BY seq",
)
_SEEN = {
    1: (*_ROWS, "SELECT id, head FROM models"),
    2: (*_ROWS, "SELECT model, name, head FROM branches"),
}


def _serious(home: Path) -> list[doctor.Finding]:
    try:
        with Registry.open(home / "registry") as registry:
            running = registry.database.value("SELECT count(*) FROM operations WHERE state = 'running'")
            assert running == 0
            return [finding for finding in doctor.check(registry, deep=True) if finding.serious]
    except NoRegistry:
        return []
