"""The schema's steps: an older registry moves up or stays as it was, and only that needs sqlite-utils."""

import gzip
import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import (
    Damaged,
    ReadOnly,
    Registry,
    StorageFull,
    Version,
    database,
    doctor,
    migration,
    schema,
    tables,
    verify_history,
)

Learn = Callable[..., Version]
OLD = Path(__file__).parent / "data" / "schema1.db.gz"

EVERYDAY = """
import sys
from pathlib import Path
from kswap_registry import Registry, copies, doctor, verify_history

folder = Path(sys.argv[1])
with Registry.open(folder, read_only=True) as registry:
    registry.models(), registry.versions("faces"), registry.events(), registry.attempts(), registry.tags("faces")
    registry.stack(registry.resolve("faces")), registry.branches("faces"), verify_history(registry)
with Registry.create(folder) as registry:
    with registry.operation("faces", kind="learn", method="m", spec={}) as operation:
        operation.commit({}, state={}, adapter="a", weights="w", metrics={})
    registry.tag("faces", 1, "good"), registry.record("faces", "export", {}), registry.move_head("faces", 0)
    doctor.check(registry, deep=True), copies.backup(registry, folder.parent / "backup")
assert not {"sqlite_utils", "pandas", "numpy"} & sys.modules.keys()
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A registry as the first version's code left it."""
    folder = tmp_path / "old"
    (folder / "tmp").mkdir(parents=True)
    (folder / "key").write_text("00" * 32)
    (folder / "key").chmod(0o600)
    (folder / "registry.db").write_bytes(gzip.decompress(OLD.read_bytes()))
    for content in (b"weights of the base", b"one", b"two"):
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / digest[:2]).mkdir(parents=True)
        (folder / "blobs" / digest[:2] / digest).write_bytes(content)
    return folder


def test_only_making_and_migrating_import_sqlite_utils(faces: Registry, learn: Learn) -> None:
    learn("one")
    faces.close()
    path = os.pathsep.join(filter(None, [str(Path(migration.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", EVERYDAY, faces.folder], check=True, env=environment)


def test_a_new_registry_and_a_migrated_one_have_the_same_schema(registry: Registry, old: Path) -> None:
    Registry.open(old).close()
    assert _schema(old / "registry.db") == _schema(registry.folder / "registry.db")


def test_every_table_is_strict(registry: Registry) -> None:
    with registry.database.reading():
        rows = registry.database.rows("PRAGMA table_list")
    loose = [row["name"] for row in rows if not row["strict"] and not row["name"].startswith("sqlite_")]
    assert loose == []


def test_an_older_schema_moves_up_with_its_data(old: Path) -> None:
    before = _dump(old / "registry.db")
    with Registry.open(old) as registry:
        assert [(model.name, model.head) for model in registry.models()] == [("faces", 1), ("signs", 0)]
        assert registry.branches("faces") == {"main": 1}
        assert [version.adapter for version in registry.versions("faces")] == ["", "adapter-one", "adapter-two"]
        assert registry.resolve("faces@good").metrics == {"accuracy": 0.75}
        assert registry.events()[-1].payload == {"from": 1, "to": schema.VERSION}
        assert verify_history(registry).first_bad is None
        assert doctor.check(registry, deep=True) == []
        events = registry.events()
    assert _dump(old / "registry.schema1.db") == before
    with Registry.open(old) as registry:
        assert registry.events() == events


def test_an_older_schema_is_not_read_read_only(old: Path) -> None:
    before = (old / "registry.db").read_bytes()
    with pytest.raises(ReadOnly, match="older schema"):
        Registry.open(old, read_only=True)
    assert (old / "registry.db").read_bytes() == before


def test_two_that_migrate_at_once_migrate_once(old: Path) -> None:
    first = database.Database(old / "registry.db")
    Registry.open(old).close()
    migration.migrate(first, old)
    first.close()
    with Registry.open(old) as registry:
        assert [event.action for event in registry.events()].count("migrate") == 1


def test_nobody_writes_between_two_steps(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock for writing is taken before the first step, not at its first change."""
    said: list[str] = []

    def write(*_: object, **__: object) -> None:
        connection = sqlite3.connect(old / "registry.db", timeout=0)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            said.append(str(error))
        connection.close()

    monkeypatch.setattr(migration, "_keep_copy", write)
    monkeypatch.setattr(migration, "append", write)
    Registry.open(old).close()
    assert said == ["database is locked"] * 2


def test_a_step_that_fails_undoes_all_of_them(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _dump(old / "registry.db")
    monkeypatch.setattr(migration, "STEPS", (*tables.STEPS, ("CREATE TABLE third (id INTEGER)", "nonsense")))
    with pytest.raises(Damaged, match="nonsense"):
        Registry.open(old)
    assert _dump(old / "registry.db") == before
    monkeypatch.undo()
    with Registry.open(old) as registry:
        assert doctor.check(registry, deep=True) == []


def test_a_disk_that_fills_during_a_step_undoes_all_of_them(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _dump(old / "registry.db")
    fill = ("PRAGMA max_page_count = 1", "INSERT INTO blobs SELECT hex(randomblob(32)), 0 FROM sqlite_master, branches")
    monkeypatch.setattr(migration, "STEPS", (*tables.STEPS, fill * 40))
    with pytest.raises(StorageFull):
        Registry.open(old)
    assert _dump(old / "registry.db") == before


def test_what_other_migrations_noted_is_neither_believed_nor_removed(old: Path) -> None:
    """Somebody pointed sqlite-utils at the registry: its table claims that our steps were taken."""
    with sqlite3.connect(old / "registry.db") as connection:
        connection.execute("CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set, name, applied_at)")
        names = [("kswap_registry", f"schema {number}") for number in (1, 2)]
        connection.executemany("INSERT INTO _sqlite_migrations (migration_set, name) VALUES (?, ?)", names)
    connection.close()
    with pytest.raises(Damaged, match="foreign table _sqlite_migrations"):
        Registry.open(old)
    shape = _schema(old / "registry.db")
    assert {"_sqlite_migrations", "branches"} <= {name for _, name, _ in shape}


def _schema(file: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(file)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    connection.close()
    return rows


def _dump(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    lines = list(connection.iterdump())
    connection.close()
    return lines
