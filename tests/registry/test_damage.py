"""Databases that are broken, foreign or newer: refused, never overwritten."""

import os
import random
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import (
    Busy,
    Damaged,
    NewerSchema,
    NoRegistry,
    ReadOnly,
    Registry,
    RegistryError,
    StorageError,
    StorageFull,
    UnsafeFile,
    Version,
    creation,
    database,
    doctor,
    durable,
    reading,
    schema,
)

Learn = Callable[..., Version]


@pytest.fixture
def file(faces: Registry, learn: Learn) -> Path:
    """The closed database of a registry with two versions."""
    learn("one", accuracy=0.5), learn("two")
    faces.close()
    return faces.folder / "registry.db"


@pytest.mark.parametrize("share", [0, 50, 100, 0.5])
def test_a_database_cut_short_is_damage_and_is_not_made_anew(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content)) if isinstance(share, float) else share])
    before = file.read_bytes()
    with pytest.raises(Damaged) as caught:
        _read_everything(file.parent)
    assert caught.value.exit_code == 12
    with pytest.raises(Damaged):
        Registry.create(file.parent).models()
    assert file.read_bytes() == before


def test_a_text_in_the_databases_place_is_damage(file: Path) -> None:
    file.write_text("not a database" * 100)
    with pytest.raises(Damaged):
        Registry.open(file.parent)


def test_another_programs_database_is_no_registry(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("CREATE TABLE photos (name)")
    connection.close()
    with pytest.raises(NoRegistry, match="another program") as caught:
        Registry.open(tmp_path)
    assert caught.value.exit_code == 10


def test_a_newer_schema_is_refused_untouched(file: Path) -> None:
    _execute(file, f"PRAGMA user_version = {schema.VERSION + 1}")
    before = (file.read_bytes(), file.stat().st_mtime_ns, sorted(os.listdir(file.parent)))
    with pytest.raises(NewerSchema) as caught:
        Registry.open(file.parent)
    assert caught.value.exit_code == 14
    assert (file.read_bytes(), file.stat().st_mtime_ns, sorted(os.listdir(file.parent))) == before


def test_a_database_in_write_ahead_mode_is_refused(file: Path) -> None:
    _execute(file, "PRAGMA journal_mode = WAL")
    with pytest.raises(Damaged, match="write-ahead"):
        Registry.open(file.parent)


@pytest.mark.parametrize("sort", ["symlink", "folder", "fifo"])
def test_a_database_that_is_no_regular_file_is_refused(file: Path, sort: str) -> None:
    file.rename(file.parent / "aside")
    make = {"symlink": lambda: file.symlink_to(file.parent / "aside"), "fifo": lambda: os.mkfifo(file)}
    make.get(sort, file.mkdir)()
    with pytest.raises(UnsafeFile) as caught:
        Registry.open(file.parent)
    assert caught.value.exit_code == 15


def test_bytes_where_there_was_a_text_are_damage(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'versions_are_not_edited'"
        ).fetchone()
        connection.execute("DROP TRIGGER versions_are_not_edited")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' STRICT', '') WHERE name = 'versions'")
    connection.close()
    _execute(file, "UPDATE versions SET note = x'00ff' WHERE number = 1")
    with sqlite3.connect(file) as connection:
        connection.execute(trigger)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || ' STRICT' WHERE name = 'versions'")
    connection.close()
    with Registry.open(file.parent) as registry, pytest.raises(Damaged):
        registry.resolve("faces@1")


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("CREATE TRIGGER spy AFTER INSERT ON versions BEGIN DELETE FROM tags; END", "foreign trigger spy"),
        ("CREATE VIEW all_models AS SELECT * FROM models", "foreign view all_models"),
        ("CREATE TABLE photos (name)", "foreign table photos"),
        ("DROP TRIGGER history_is_not_edited", "lacks its trigger history_is_not_edited"),
        ("ALTER TABLE tags ADD COLUMN colour TEXT", "changed table tags"),
    ],
)
def test_a_foreign_schema_is_refused(file: Path, statement: str, complaint: str) -> None:
    _execute(file, statement)
    with pytest.raises(Damaged, match=complaint):
        Registry.open(file.parent)


def test_a_flipped_byte_gives_a_right_answer_or_a_clear_one(file: Path, tmp_path: Path) -> None:
    """200 seeded offsets: each read is right, refused with exit 12 (or 10, 14), or doctor finds the damage."""
    content, expected = file.read_bytes(), _read_everything(file.parent)
    chance = random.Random(5)
    for trial in range(200):
        folder = tmp_path / f"flip{trial}"
        shutil.copytree(file.parent, folder)
        offset = chance.randrange(len(content)) if trial % 2 else chance.randrange(200)
        flipped = bytes([content[offset] ^ (1 << chance.randrange(8))])
        (folder / "registry.db").write_bytes(content[:offset] + flipped + content[offset + 1 :])
        try:
            sound = _read_everything(folder) == expected or _findings(folder) != []
        except RegistryError as error:
            sound = error.exit_code in (10, 12, 14)
        assert sound, offset
        shutil.rmtree(folder)


def _leave_a_hot_journal(file: Path) -> None:
    child = os.fork()
    if child == 0:
        registry = Registry.open(file.parent)
        registry.database.execute("PRAGMA cache_size = 1")  # so that pages reach the disk before the commit
        with registry.database.writing():
            for number in range(2000):
                registry.database.execute("INSERT INTO tags VALUES (1, ?, 1)", f"tag{number}")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (file.parent / "registry.db-journal").stat().st_size > 0


def test_a_killed_writers_journal_is_rolled_back(file: Path) -> None:
    before = _read_everything(file.parent)
    _leave_a_hot_journal(file)
    assert _read_everything(file.parent) == before
    assert _findings(file.parent) == []


def test_a_killed_writers_journal_is_rolled_back_for_who_only_reads(file: Path) -> None:
    _leave_a_hot_journal(file)
    with Registry.open(file.parent, read_only=True) as registry:
        assert registry.tags("faces") == {}


def test_a_journal_that_cannot_be_rolled_back_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave_a_hot_journal(file)
    monkeypatch.setattr(database.Database, "_undo_what_was_cut_short", lambda self: None)
    with pytest.raises(ReadOnly, match="a change that was cut short"):
        Registry.open(file.parent, read_only=True)


def test_a_row_that_is_gone_is_damage(file: Path) -> None:
    with Registry.open(file.parent) as registry, pytest.raises(Damaged, match="version 7 is gone"):
        reading.version(registry.database, 1, 7)


@pytest.mark.parametrize("digest", [None, 7, b"ab", "ab"])
def test_what_is_no_digest_is_damage(faces: Registry, digest: object) -> None:
    with pytest.raises(Damaged, match="is not the digest of a blob"):
        faces.store.path(digest)  # type: ignore[arg-type]


def test_folders_that_a_copying_tool_dropped_are_made_again(faces: Registry) -> None:
    (faces.folder / "tmp").rmdir()
    assert doctor.check(faces) == []
    with creation.scratch(faces.folder) as folder:
        (folder / "file").touch()
    assert list((faces.folder / "tmp").iterdir()) == []


def test_blobs_without_a_database_are_not_given_an_empty_one(file: Path) -> None:
    file.unlink()
    with pytest.raises(Damaged, match="is gone"):
        Registry.create(file.parent)
    assert not file.exists()


def test_the_second_of_two_that_create_at_once_keeps_the_firsts_file(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("first")
    (tmp_path / "second").write_text("second")
    durable.publish_once(tmp_path / "first", tmp_path / "key")
    durable.publish_once(tmp_path / "second", tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_text() == "first"


def test_a_registry_removed_during_an_operation_does_not_come_back(faces: Registry) -> None:
    with pytest.raises(StorageError) as caught:
        _learn_while(faces, lambda: shutil.rmtree(faces.folder))
    assert caught.value.exit_code == 16
    assert not faces.folder.exists()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Registry.create(tmp_path / "file" / "registry")


@pytest.mark.parametrize("name", ["with space", "new\nline", "ünï%20?#cødé", "x" * 200])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    with Registry.create(tmp_path / name) as registry:
        assert registry.models() == []
    with Registry.open(tmp_path / name, read_only=True) as registry:
        assert len(registry.events()) == 1


@pytest.mark.parametrize("remains", ["key"])
def test_a_lost_key_is_reported(faces: Registry, remains: str) -> None:
    (faces.folder / remains).unlink()
    with pytest.raises(Damaged, match="key"):
        faces.commitment(b"a photo")


def test_a_key_that_cannot_be_read_is_reported(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kswap_registry.store.open_regular", refuse)
    with pytest.raises(ReadOnly, match="cannot be read"):
        faces.commitment(b"a photo")


def test_the_key_is_the_users_alone(faces: Registry) -> None:
    assert stat.S_IMODE((faces.folder / "key").stat().st_mode) == 0o600


def test_an_sqlite_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 0))
    with pytest.raises(RegistryError, match=r"SQLite 3\.37"):
        Registry.create(tmp_path / "registry")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (sqlite3.SQLITE_FULL, StorageFull),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Busy),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError),
        (sqlite3.SQLITE_READONLY_DBMOVED, ReadOnly),
        (sqlite3.SQLITE_CORRUPT_INDEX, Damaged),
    ],
)
def test_what_sqlite_says_is_put_into_words(code: int, error: type[RegistryError]) -> None:
    said = sqlite3.OperationalError("as SQLite says")
    said.sqlite_errorcode = code
    translated = database.translate(said, Path("registry.db"))
    assert type(translated) is error
    assert "as SQLite says" in translated.message or error is Busy
    assert translated.hint


def _learn_while(registry: Registry, change: Callable[[], None]) -> None:
    with registry.operation("faces", kind="learn", method="m", spec={}) as operation:
        adapter = operation.folder / "adapter"
        adapter.write_text("one")
        change()
        operation.commit({}, state={}, adapter="a", weights="w", metrics={})


def _execute(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(statement)
    connection.close()


def _read_everything(folder: Path) -> list[object]:
    with Registry.open(folder) as registry:
        models = registry.models()
        names = [model.name for model in models]
        versions = [registry.versions(name) for name in names]
        stacks = [registry.stack(registry.resolve(name)) for name in names]
        tags = [(registry.tags(name), registry.branches(name)) for name in names]
        return [models, versions, stacks, tags, registry.events()]


def _findings(folder: Path) -> list[doctor.Finding]:
    with Registry.open(folder) as registry:
        return doctor.check(registry)


@pytest.mark.parametrize("part", ["blobs", "registry.db"])
def test_what_may_not_be_read_is_a_storage_error(faces: Registry, part: str) -> None:
    """As a user without rights; the tests may run as root, whom no rights stop."""
    for folder in (faces.folder.parent, faces.folder):
        folder.chmod(0o755)
    digest = faces.model("faces").files["model.safetensors"]
    (faces.folder / part).chmod(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            with Registry.open(faces.folder, read_only=True) as registry:
                registry.blob(digest)
        except StorageError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 16
    (faces.folder / part).chmod(0o755)
