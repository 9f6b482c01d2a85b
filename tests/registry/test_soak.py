"""Long runs: many processes that are killed at random, and a disk that really fills up."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from kswap_registry import ReadOnly, Registry, RegistryError, StorageError, cleanup, doctor, faults, verify_history

PROCESSES, STEPS = 8, 200


def learn(registry: Registry, content: bytes) -> None:
    with registry.operation("faces", kind="learn", method="m", spec={}) as operation:
        adapter = operation.folder / "adapter"
        adapter.write_bytes(content)
        operation.commit({"adapter": adapter}, state={}, adapter="a", weights="w", metrics={"accuracy": 0.5})


def learn_for_ever(registry: Registry, chance: random.Random) -> None:
    while True:
        learn(registry, chance.randbytes(chance.randrange(1, 200_000)))


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def step(folder: Path, chance: random.Random) -> None:
    """One random change, and in one of five a kill at a random point of it."""
    if chance.random() < 0.2:
        os.environ[faults.VARIABLE] = f"{chance.choice(sorted(faults.POINTS))}:kill"
    with Registry.open(folder, timeout=300) as registry:
        last = len(registry.versions("faces")) - 1
        number, name = chance.randint(0, last), f"n{chance.randrange(10**9)}"
        changes: list[Callable[[], object]] = [
            lambda: learn(registry, chance.randbytes(2000)),
            lambda: learn(registry, b"always the same"),
            lambda: registry.move_head("faces", number),
            lambda: registry.tag("faces", number, name),
            lambda: registry.branch("faces", name, number),
            lambda: registry.record("faces", "eval", {"accuracy": 0.5}),
            lambda: cleanup.gc(registry, timedelta(0), dry_run=False),
            lambda: doctor.fix(registry),
        ]
        chance.choice(changes)()


def walk(folder: Path, seed: int) -> None:
    """Many steps, each in a process of its own that may be killed; any other end is an error."""
    chance = random.Random(seed)
    for _ in range(STEPS):
        here = chance.randrange(2**32)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                step(folder, random.Random(here))
                status = 0
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, -9):
            os._exit(1)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_processes_and_random_kills_leave_a_registry_intact(faces: Registry) -> None:
    walkers = []
    for seed in range(PROCESSES):
        child = os.fork()
        if child == 0:
            walk(faces.folder, seed)
        walkers.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in walkers] == [0] * PROCESSES
    with faces.exclusive():
        pass
    assert [finding for finding in doctor.check(faces, deep=True) if finding.serious] == []
    verification = verify_history(faces)
    assert verification.first_bad is None
    assert [event.seq for event in faces.events()] == list(range(1, verification.entries + 1))
    sys.stdout.write(f"{verification.entries} entries, {faces.versions('faces')[-1].number} versions")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]).returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_damages_nothing(small_disk: Path, checkpoint: Path) -> None:
    chance = random.Random(1)
    with Registry.create(small_disk / "registry") as registry:
        files = {"model": checkpoint}
        registry.add_model("faces", task="t", source="s", spec={}, classes=[], fingerprint="f", files=files)
        for _ in range(3):
            with pytest.raises(StorageError):
                learn_for_ever(registry, chance)
            assert [finding for finding in doctor.check(registry, deep=True) if finding.serious] == []
            with pytest.raises(OSError, match="No space left"):
                fill(small_disk / "junk")
            assert len(registry.versions("faces")) > 1
            assert registry.events("faces")
            with suppress(StorageError):  # it works where a few bytes are left in the last block
                registry.move_head("faces", 1)
            (small_disk / "junk").unlink()
            registry.move_head("faces", 0)
            cleanup.gc(registry, timedelta(0), dry_run=False)
            assert doctor.check(registry, deep=True) == []


@pytest.mark.slow
def test_a_disk_that_is_read_only_is_read(small_disk: Path, checkpoint: Path) -> None:
    folder = small_disk / "registry"
    with Registry.create(folder) as registry:
        files = {"model": checkpoint}
        registry.add_model("faces", task="t", source="s", spec={}, classes=[], fingerprint="f", files=files)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for read_only in (True, False):
        with Registry.open(folder, read_only=read_only) as registry:
            assert registry.resolve("faces@base").number == 0
            assert doctor.check(registry, deep=True) == []
            with pytest.raises(ReadOnly) as caught:
                learn(registry, b"one")
            assert caught.value.exit_code == 16
            with pytest.raises(RegistryError):
                registry.tag("faces", 0, "good")
