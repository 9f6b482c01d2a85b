import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from kswap_registry import (
    AlreadyExists,
    BadName,
    Damaged,
    Operation,
    Registry,
    StorageError,
    StorageFull,
    UnknownModel,
    UnknownVersion,
    Version,
    faults,
)

Learn = Callable[..., Version]


def state(registry: Registry) -> tuple[str, str | None]:
    row = registry.database.row("SELECT state, error FROM operations ORDER BY id DESC")
    assert row is not None
    return row["state"], row["error"]


def begin(registry: Registry, *, command: str = "", branch: str = "main") -> AbstractContextManager[Operation]:
    return registry.operation(
        "faces", kind="forget", method="gs-lora", spec={"rank": 8}, command=command, branch=branch
    )


def run(registry: Registry, work: Callable[[Operation], None]) -> None:
    with begin(registry) as operation:
        work(operation)


def test_an_operation_begins_on_the_head_with_a_scratch_folder(faces: Registry, learn: Learn) -> None:
    first = learn("one")
    with begin(faces) as operation:
        assert operation.parent == first
        assert operation.folder.is_dir()
        assert operation.folder.parent == faces.folder / "tmp"
        assert state(faces) == ("running", None)
    assert not operation.folder.exists()


def test_a_committed_operation_is_done_and_told(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    assert state(faces)[0] == "done"
    event = faces.events()[-1]
    assert (event.action, event.number, event.previous, event.command) == ("learn", 1, 0, "kswapctl learn")
    assert event.payload["spec"] == {"rank": 8}
    assert event.payload["environment"] == {"torch": "2"}
    assert event.payload["fingerprint"] == version.fingerprint


def test_attempts_tell_how_each_operation_ended(faces: Registry, learn: Learn) -> None:
    learn("one")
    with begin(faces, command="kswapctl forget"):
        (running,) = faces.attempts("faces", limit=1)
        assert (running.state, running.ended, running.command) == ("running", None, "kswapctl forget")
    done, abandoned = faces.attempts()
    assert (done.state, done.version, done.parent, done.spec) == ("done", 1, 0, {"rank": 8})
    assert (done.branch, done.environment, done.error) == ("main", {"torch": "2"}, None)
    assert (abandoned.state, abandoned.version) == ("abandoned", None)
    faces.database.execute("UPDATE operations SET spec = '{' WHERE id = 2")
    with pytest.raises(Damaged, match="operation 2"):
        faces.attempts()


def test_folders_that_a_copying_tool_dropped_are_made_again(faces: Registry, learn: Learn) -> None:
    (faces.folder / "tmp").rmdir()
    assert learn("one").number == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("diverged"), ("failed", "ValueError: diverged")),
        (ValueError("NUL \0"), ("failed", "ValueError: NUL ")),
        (KeyboardInterrupt(), ("interrupted", "KeyboardInterrupt: ")),
        (SystemExit(143), ("interrupted", "SystemExit: 143")),
    ],
)
def test_an_operation_that_ends_badly_is_marked_and_cleaned_up(
    faces: Registry, error: BaseException, expected: tuple[str, str]
) -> None:
    before = faces.events()

    def work(operation: Operation) -> None:
        (operation.folder / "checkpoint").write_text("half")
        raise error

    with pytest.raises(type(error)):
        run(faces, work)
    assert state(faces) == expected
    assert list((faces.folder / "tmp").iterdir()) == []
    assert faces.events() == before


def test_an_operation_without_a_commit_is_abandoned(faces: Registry) -> None:
    with begin(faces):
        pass
    assert state(faces) == ("abandoned", "")


def test_an_error_after_the_commit_does_not_undo_it(faces: Registry) -> None:
    def work(operation: Operation) -> None:
        operation.commit({}, state={}, adapter="a", weights="w", metrics={})
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        run(faces, work)
    assert state(faces)[0] == "done"
    assert faces.model("faces").head == 1


def test_the_first_error_counts_when_the_disk_is_full_too(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(operation: Operation) -> None:
        monkeypatch.setenv(faults.VARIABLE, "operation.before_close:enospc")
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        run(faces, work)
    monkeypatch.delenv(faults.VARIABLE)
    assert state(faces)[0] == "running"
    faces.move_head("faces", 0)
    assert state(faces) == ("failed", "its process died")


def test_a_full_disk_at_an_uneventful_end_is_said(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "operation.before_close:enospc")
    with pytest.raises(StorageFull), begin(faces):
        pass


def test_an_unknown_model_or_branch_begins_nothing(faces: Registry) -> None:
    with pytest.raises(UnknownModel), faces.operation("signs", kind="learn", method="m", spec={}):
        pass
    with pytest.raises(UnknownVersion) as caught, begin(faces, branch="dev"):
        pass
    assert caught.value.message == "no version 'faces@dev'"
    assert faces.database.value("SELECT count(*) FROM operations") == 0
    with faces.exclusive():
        pass


def test_two_lines_of_a_model_live_side_by_side(faces: Registry, learn: Learn) -> None:
    learn("one")
    faces.branch("faces", "dev", 1, command="kswapctl branch")
    with begin(faces, branch="dev") as operation:
        version = operation.commit({}, state={}, adapter="a", weights="w", metrics={})
    third = learn("three")
    assert (version.number, version.parent, third.number, third.parent) == (2, 1, 3, 1)
    assert faces.branches("faces") == {"dev": 2, "main": 3}
    assert faces.resolve("faces@dev") == version
    assert faces.resolve("faces@main") == faces.resolve("faces") == third
    assert faces.move_head("faces", 0, branch="dev").number == 0
    assert faces.model("faces").head == 3
    with pytest.raises(UnknownVersion) as caught:
        faces.resolve("faces@9")
    assert caught.value.hint == "known: faces@base, faces@1 .. faces@3; branches dev"


def test_a_name_is_a_tag_or_a_branch(faces: Registry) -> None:
    faces.tag("faces", 0, "good")
    faces.branch("faces", "dev", 0)
    with pytest.raises(AlreadyExists, match="a tag 'good'"):
        faces.branch("faces", "good", 0)
    with pytest.raises(AlreadyExists, match="a branch 'dev'"):
        faces.branch("faces", "dev", 0)
    with pytest.raises(AlreadyExists, match="a branch 'dev'"):
        faces.tag("faces", 0, "dev")
    with begin(faces) as operation, pytest.raises(BadName):
        operation.commit({}, state={}, adapter="a", weights="w", metrics={}, onto="head")


def test_a_failed_commit_can_be_repeated(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with begin(faces) as operation:
        adapter = operation.folder / "adapter"
        adapter.write_text("precious")
        monkeypatch.setenv(faults.VARIABLE, "commit.after_history:enospc")
        with pytest.raises(StorageFull):
            operation.commit({"adapter": adapter}, state={}, adapter="a", weights="w", metrics={})
        monkeypatch.delenv(faults.VARIABLE)
        assert operation.commit({"adapter": adapter}, state={}, adapter="a", weights="w", metrics={}).number == 1


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_an_adapter_that_does_not_fit_leaves_the_old_state(faces: Registry) -> None:
    def work(operation: Operation) -> None:
        adapter = operation.folder / "adapter"
        adapter.write_bytes(b"x" * 300_000)
        with file_size_limit(200_000):
            operation.commit({"adapter": adapter}, state={}, adapter="a", weights="w", metrics={})

    with pytest.raises(StorageFull) as caught:
        run(faces, work)
    assert caught.value.exit_code == 16
    assert len(faces.versions("faces")) == 1
    assert list((faces.folder / "tmp").iterdir()) == []


def test_a_row_that_does_not_fit_leaves_only_a_dangling_blob(faces: Registry, learn: Learn) -> None:
    size = (faces.folder / "registry.db").stat().st_size

    def work(operation: Operation) -> None:
        adapter = operation.folder / "adapter"
        adapter.write_text("small")
        with file_size_limit(size):
            spec = {"long": "x" * 100_000}
            operation.commit({"adapter": adapter}, state=spec, adapter="a", weights="w", metrics={})

    with pytest.raises(StorageError):
        run(faces, work)
    assert len(faces.versions("faces")) == 1
    assert learn("small").number == 1


def test_an_adapter_stays_readable_while_its_blob_is_taken_away(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    with faces.blob(version.files["adapter.safetensors"]).open() as reader:
        shutil.rmtree(faces.folder / "blobs")
        assert reader.read() == "one"
