import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import (
    CorruptBlob,
    Damaged,
    MissingBlob,
    ReadOnly,
    Registry,
    StorageError,
    StorageFull,
    UnsafeFile,
    Version,
    blobs,
)

Learn = Callable[..., Version]


def path_of(registry: Registry, version: Version) -> Path:
    return registry.blob(version.files["adapter.safetensors"])


def test_a_blob_holds_what_was_given_and_is_read_only(faces: Registry, learn: Learn) -> None:
    path = path_of(faces, learn("one"))
    assert path.read_text() == "one"
    assert path.name == hashlib.sha256(b"one").hexdigest()
    assert path.parent.name == path.name[:2]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o444), (0o077, 0o400), (0o002, 0o444), (0o027, 0o440)])
def test_the_umask_decides_who_may_read_a_blob(faces: Registry, learn: Learn, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = path_of(faces, learn("one"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_storing_the_same_content_again_keeps_the_file(faces: Registry, learn: Learn) -> None:
    first = path_of(faces, learn("one")).stat().st_ino
    assert path_of(faces, learn("one")).stat().st_ino == first


def test_storing_again_heals_a_damaged_blob_without_writing_into_it(faces: Registry, learn: Learn) -> None:
    path = path_of(faces, learn("one"))
    path.chmod(0o644)
    path.write_text("0ne")
    with path.open() as reader:
        learn("one")
        assert reader.read() == "0ne"
    assert path.read_text() == "one"


def test_a_missing_blob_is_named(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    path_of(faces, version).unlink()
    with pytest.raises(MissingBlob) as caught:
        path_of(faces, version)
    assert caught.value.exit_code == 12
    assert "restore" in caught.value.hint


def test_a_digest_nothing_refers_to_is_missing(faces: Registry) -> None:
    with pytest.raises(MissingBlob):
        faces.blob("0" * 64)
    with pytest.raises(MissingBlob):
        faces.blob("../../etc/passwd")
    with pytest.raises(Damaged):
        faces.store.path("../../etc/passwd")


def test_a_blob_cut_short_is_found_at_once(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    path = path_of(faces, version)
    path.chmod(0o644)
    path.write_text("on")
    with pytest.raises(CorruptBlob, match="2 bytes, 3 were stored") as caught:
        path_of(faces, version)
    assert caught.value.exit_code == 12


def test_a_blob_with_a_zero_tail_is_found_by_its_hash(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    path = path_of(faces, version)
    path.chmod(0o644)
    path.write_bytes(b"on\0")
    assert path_of(faces, version) == path
    with pytest.raises(CorruptBlob):
        faces.blob(version.files["adapter.safetensors"], verify=True)


@pytest.mark.parametrize("sort", ["symlink", "fifo", "folder", "symlinked-shard"])
def test_a_blob_that_is_no_regular_file_is_refused(faces: Registry, learn: Learn, sort: str, tmp_path: Path) -> None:
    version = learn("one")
    path = path_of(faces, version)
    if sort == "symlinked-shard":
        path.parent.rename(tmp_path / "shard")
        path.parent.symlink_to(tmp_path / "shard")
    else:
        path.rename(tmp_path / "aside")
        make = {"symlink": lambda: path.symlink_to(tmp_path / "aside"), "fifo": lambda: os.mkfifo(path)}
        make.get(sort, path.mkdir)()
    with pytest.raises(UnsafeFile) as caught:
        path_of(faces, version)
    assert caught.value.exit_code == 15


@pytest.mark.parametrize("sort", ["fifo", "folder", "device"])
def test_a_source_that_is_no_regular_file_is_refused(faces: Registry, sort: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if sort == "fifo":
        os.mkfifo(source)
    elif sort == "folder":
        source.mkdir()
    else:
        source = Path("/dev/null")
    with pytest.raises(UnsafeFile) as caught:
        faces.add_model("signs", task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": source})
    assert caught.value.exit_code == 15
    assert len(faces.models()) == 1
    assert list((faces.folder / "tmp").iterdir()) == []


def test_a_source_behind_a_symlink_is_taken(faces: Registry, checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"  # as a download cache has them
    link.symlink_to(checkpoint)
    model = faces.add_model("signs", task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": link})
    assert faces.blob(model.files["m"]).read_bytes() == checkpoint.read_bytes()


def test_a_disk_that_returns_other_bytes_is_noticed(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "hash_file", lambda path: "0" * 64)
    with pytest.raises(CorruptBlob, match="other bytes"):
        learn("one")
    assert len(faces.versions("faces")) == 1


def test_a_rename_across_disks_is_reported(faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError) as caught:
        learn("one")
    assert caught.value.exit_code == 16


def test_a_blob_taken_between_storing_and_recording_stops_the_commit(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steal(name: str) -> None:
        if name == "commit.before_rows":
            path = faces.store.path(hashlib.sha256(b"one").hexdigest())
            path.unlink()

    monkeypatch.setattr("kswap_registry.operation.point", steal)
    with pytest.raises(MissingBlob):
        learn("one")
    assert len(faces.versions("faces")) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EFBIG, StorageFull), (errno.EROFS, ReadOnly), (errno.EIO, StorageError)],
)
def test_what_the_disk_says_is_put_into_words(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch, code: int, error: type[StorageError]
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error) as caught:
        learn("one")
    assert caught.value.exit_code == 16
    assert "\n" not in caught.value.message
    assert len(faces.versions("faces")) == 1


def test_files_and_folders_are_synced_before_the_row_is_committed(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, rename, fsync of its folder, then COMMIT: what a power cut must find."""
    steps: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    def note_statement(statement: str) -> None:
        if statement in ("BEGIN IMMEDIATE", "COMMIT"):
            steps.append(statement)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    faces.database._connection.set_trace_callback(note_statement)
    learn("one")
    running, version = ["BEGIN IMMEDIATE", "COMMIT"], ["BEGIN IMMEDIATE", "COMMIT"]
    stored = ["sync file", "sync folder", "rename", "sync folder", "sync folder"]  # the first: blobs/ got a shard
    wanted = [*running, *stored, *version]
    assert steps[: len(wanted)] == wanted


def test_sqlite_is_set_to_survive(faces: Registry) -> None:
    wanted = {"synchronous": 3, "foreign_keys": 1, "trusted_schema": 0, "journal_mode": "delete"}
    assert {name: faces.database.value(f"PRAGMA {name}") for name in wanted} == wanted
