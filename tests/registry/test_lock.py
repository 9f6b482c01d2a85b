import errno
import fcntl
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from kswap_registry import (
    Busy,
    Damaged,
    HeadMoved,
    Holder,
    Registry,
    StorageError,
    Version,
    database,
    doctor,
    identity,
    lock,
    verify_history,
)

Learn = Callable[..., Version]


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hold(folder: Path, ready: Path) -> None:
    """Hold the lock until killed."""
    with (
        Registry.open(folder) as registry,
        registry.operation("faces", kind="learn", method="m", spec={}, command="kswapctl learn faces"),
    ):
        ready.touch()
        time.sleep(60)


def until(there: Path) -> None:
    while not there.exists():
        time.sleep(0.005)


@pytest.fixture
def holder(faces: Registry, tmp_path: Path):  # type: ignore[no-untyped-def]
    """The process id of another process that is writing."""
    child = in_child(lambda: hold(faces.folder, tmp_path / "ready"))
    until(tmp_path / "ready")
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_writer_is_told_who_holds_the_registry(faces: Registry, holder: int) -> None:
    told: list[Holder] = []
    with Registry.open(faces.folder, timeout=0.3, on_wait=told.append) as second, pytest.raises(Busy) as caught:
        second.move_head("faces", 0)
    assert caught.value.exit_code == 11
    assert f"process {holder} (kswapctl learn faces), for 0 s" in caught.value.message
    assert [holder.process for holder in told] == [holder]


def test_readers_and_notes_do_not_wait_for_a_writer(faces: Registry, holder: int) -> None:
    assert faces.resolve("faces").number == 0
    faces.record("faces", "eval", {"accuracy": 1})
    faces.tag("faces", 0, "good")
    assert faces.tags("faces") == {"good": 0}


def test_a_killed_holder_leaves_no_lock_and_its_operation_is_marked(faces: Registry, tmp_path: Path) -> None:
    child = in_child(lambda: hold(faces.folder, tmp_path / "ready"))
    until(tmp_path / "ready")
    os.kill(child, signal.SIGKILL)
    ended(child)
    started = time.monotonic()
    faces.move_head("faces", 0)
    assert time.monotonic() - started < 0.2
    row = faces.database.row("SELECT state, error FROM operations")
    assert row is not None
    assert tuple(row) == ("failed", "its process died")


def test_a_writer_goes_on_when_the_lock_comes_free(faces: Registry, tmp_path: Path) -> None:
    def briefly() -> None:
        with Registry.open(faces.folder) as registry, registry.exclusive("kswapctl gc"):
            (tmp_path / "ready").touch()
            time.sleep(0.3)

    child = in_child(briefly)
    until(tmp_path / "ready")
    with Registry.open(faces.folder, timeout=20) as patient, patient.exclusive():
        pass
    assert ended(child) == 0


def test_a_writer_that_nobody_listens_to_waits_all_the_same(faces: Registry, holder: int) -> None:
    with Registry.open(faces.folder, timeout=0.05) as second, pytest.raises(Busy, match=str(holder)):
        second.move_head("faces", 0)


def test_in_a_child_the_lock_is_only_forgotten(faces: Registry) -> None:
    spare = os.open(faces.folder / ".lock", os.O_RDWR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_held", {spare})
        lock._close_in_child()
        assert lock._held == set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(spare)


def test_the_lock_nests_and_is_given_back_once(faces: Registry) -> None:
    with faces.exclusive("outer"):
        with faces.exclusive("inner"):
            pass
        assert json.loads((faces.folder / ".lock").read_text())["command"] == "outer"
        with Registry.open(faces.folder, timeout=0) as second, pytest.raises(Busy), second.exclusive():
            pass
    assert (faces.folder / ".lock").read_text() == ""


def test_a_forked_worker_does_not_keep_the_lock(faces: Registry, tmp_path: Path) -> None:
    def parent() -> None:
        with Registry.open(faces.folder) as registry, registry.exclusive():
            worker = in_child(lambda: time.sleep(60))
            (tmp_path / "worker").write_text(str(worker))
            (tmp_path / "ready").touch()
            time.sleep(60)

    child = in_child(parent)
    until(tmp_path / "ready")
    os.kill(child, signal.SIGKILL)
    ended(child)
    with faces.exclusive():  # the orphaned worker still runs
        pass
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_a_forked_process_may_not_use_the_connection(faces: Registry) -> None:
    def misuse() -> None:
        with pytest.raises(AssertionError):
            faces.models()

    assert ended(in_child(misuse)) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"process": 1}', '{"process": {}}'])
def test_an_unreadable_lock_file_names_nobody(faces: Registry, text: str) -> None:
    (faces.folder / ".lock").write_text(text)
    assert str(faces._lock.holder()) == "another process"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_on_a_file_that_was_removed_is_not_taken_for_one(
    faces: Registry, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path, flock = faces.folder / ".lock", fcntl.flock
    removed: list[Path] = []

    def remove_first(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        if not removed:
            removed.append(path)
            path.unlink()
            if replaced:
                path.touch()

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with faces.exclusive():
        assert path.exists()


def test_a_disk_without_locks_is_reported(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available"), faces.exclusive():
        pass


def test_an_interrupt_while_signing_lets_go(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt), faces.exclusive():
        pass
    monkeypatch.undo()
    with Registry.open(faces.folder, timeout=0) as second, second.exclusive():
        pass


def test_two_learners_without_a_working_lock_lose_nothing(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)  # as on some network disks
    second = Registry.open(faces.folder)
    with faces.operation("faces", kind="learn", method="m", spec={}) as slow:
        with second.operation("faces", kind="learn", method="m", spec={}) as quick:
            quick.commit({}, state={}, adapter="quick", weights="w", metrics={})
        with pytest.raises(HeadMoved, match="from faces@base to faces@1") as caught:
            slow.commit({}, state={}, adapter="slow", weights="w", metrics={})
        assert "branch" in caught.value.hint
        kept = slow.commit({}, state={}, adapter="slow", weights="w", metrics={}, onto="slow")
    second.close()
    assert (kept.number, kept.parent) == (2, 0)
    assert faces.branches("faces") == {"main": 1, "slow": 2}
    assert faces.resolve("faces@slow") == kept
    assert faces.database.value("SELECT count(*) FROM operations WHERE state = 'done'") == 2


def test_many_learners_without_a_working_lock_damage_nothing(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)

    begun = multiprocessing.get_context("fork").Barrier(4)

    def work() -> None:
        with Registry.open(faces.folder) as registry:
            for turn in range(8):
                with suppress(HeadMoved), registry.operation("faces", kind="learn", method="m", spec={}) as operation:
                    if turn == 0:
                        begun.wait(60)  # all four on one head: three must fail, however the cores are shared
                    adapter = operation.folder / "adapter"
                    adapter.write_text("always the same")
                    operation.commit({"adapter": adapter}, state={}, adapter="a", weights="w", metrics={})

    children = [in_child(work) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert doctor.check(faces, deep=True) == []
    versions = faces.versions("faces")
    assert [version.parent for version in versions[1:]] == [version.number for version in versions[:-1]]
    states = [attempt.state for attempt in faces.attempts()]
    assert (states.count("done"), set(states)) == (len(versions) - 1, {"done", "failed"})


def test_a_living_operation_is_left_alone_when_the_lock_does_not_lock(
    faces: Registry, holder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    faces.move_head("faces", 0)
    assert faces.database.value("SELECT state FROM operations") == "running"


def test_a_process_of_another_machine_or_without_a_start_is_not_ours() -> None:
    assert identity.lives(identity.process())
    assert not identity.lives_elsewhere(identity.process())
    assert not identity.lives(f"elsewhere:{os.getpid()}:1")
    assert not identity.lives(f"{identity.process().split(':')[0]}:{2**22 + 1}:")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", nameless)
    assert identity.user() == f"uid {os.getuid()}"


def test_a_database_locked_by_another_program_is_busy(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(faces.folder / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    with Registry.open(faces.folder) as second, pytest.raises(Busy):
        second.move_head("faces", 0)
    other.close()


def test_two_at_once_make_one_registry(tmp_path: Path) -> None:
    go = tmp_path / "go"

    def create() -> None:
        until(go)
        Registry.create(tmp_path / "registry").close()

    children = [in_child(create) for _ in range(4)]
    go.touch()
    assert [ended(child) for child in children] == [0] * 4
    with Registry.open(tmp_path / "registry") as registry:
        assert [event.action for event in registry.events()] == ["init"]
        assert list((tmp_path / "registry" / "tmp").iterdir()) == []


def test_many_writers_leave_a_history_without_gaps(faces: Registry) -> None:
    def work() -> None:
        with Registry.open(faces.folder, timeout=60) as registry:
            for number in range(10):
                registry.record("faces", "eval", {"step": number})
                with registry.operation("faces", kind="learn", method="m", spec={}) as operation:
                    operation.commit({}, state={}, adapter="a", weights="w", metrics={})

    children = [in_child(work) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert [event.seq for event in faces.events()] == list(range(1, 83))
    assert verify_history(faces).first_bad is None
    assert faces.model("faces").head == 40


def test_readers_see_whole_states_while_others_write(faces: Registry) -> None:
    def work() -> None:
        with Registry.open(faces.folder) as registry:
            for _ in range(20):
                with registry.operation("faces", kind="learn", method="m", spec={}) as operation:
                    operation.commit({}, state={}, adapter="a", weights="w", metrics={"one": 1, "two": 2})

    child = in_child(work)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        head = faces.resolve("faces")
        assert head.number == 0 or head.metrics == {"one": 1.0, "two": 2.0}
        assert len(faces.stack(head)) == head.number


def test_a_constraint_that_breaks_is_damage(faces: Registry) -> None:
    with pytest.raises(Damaged), faces.database.writing():
        faces.database.execute("INSERT INTO files VALUES (99, 'x', 'y')")
