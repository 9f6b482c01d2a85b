import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from kswap_registry import (
    AlreadyExists,
    Busy,
    CorruptBlob,
    Damaged,
    MissingBlob,
    NoRegistry,
    Registry,
    StorageFull,
    Version,
    cleanup,
    clock,
    copies,
    creation,
    doctor,
    filesystem,
    remains,
)

Learn = Callable[..., Version]


def forge(registry: Registry, statement: str) -> None:
    """Change a row although the triggers forbid it."""
    connection = sqlite3.connect(registry.folder / "registry.db", isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


def litter(registry: Registry, age: float = 0.0) -> list[Path]:
    """Leave a dangling blob, a left-over of a file format's writer and a scratch folder."""
    folder = registry.folder
    left = [folder / "blobs" / ".tmpXYZ", folder / "blobs" / "00" / ("0" * 64), folder / "tmp" / "left" / "part"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("123")
        os.utime(path, (time.time() - age,) * 2)
    os.utime(left[2].parent, (time.time() - age,) * 2)
    return [left[0], left[1], left[2].parent]


def blob(registry: Registry, version: Version) -> Path:
    return registry.blob(version.files["adapter.safetensors"])


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"\0" * path.stat().st_size)


def told(findings: list[doctor.Finding]) -> list[tuple[str, str]]:
    return [(finding.invariant, finding.subject) for finding in findings]


def test_a_sound_registry_has_no_findings(faces: Registry, learn: Learn) -> None:
    learn("one", accuracy=0.5), learn("two")
    faces.tag("faces", 1, "good")
    faces.branch("faces", "dev", 1)
    faces.move_head("faces", 2, branch="dev")
    faces.move_head("faces", 0)
    assert doctor.check(faces, deep=True) == []


def test_a_missing_blob_is_found_and_named(faces: Registry, learn: Learn) -> None:
    blob(faces, learn("one")).unlink()
    (finding,) = doctor.check(faces)
    assert (finding.invariant, finding.subject) == ("I1", "faces@1 adapter.safetensors")
    assert finding.serious


def test_a_spoilt_blob_is_found_by_the_deep_check_only(faces: Registry, learn: Learn) -> None:
    path = blob(faces, learn("one"))
    spoil(path)
    assert doctor.check(faces) == []
    (finding,) = doctor.check(faces, deep=True)
    assert (finding.invariant, finding.path) == ("I1", path)


def test_remains_are_reported_and_harm_nothing(faces: Registry) -> None:
    left = litter(faces)
    findings = doctor.check(faces)
    assert [finding.path for finding in findings] == left
    assert {finding.invariant for finding in findings} == {"I3"}
    assert not any(finding.serious for finding in findings)
    assert len(faces.versions("faces")) == 1


def test_the_scratch_folder_of_a_running_operation_is_no_remain(faces: Registry) -> None:
    with faces.operation("faces", kind="learn", method="m", spec={}):
        assert doctor.check(faces) == []


def test_what_is_on_its_way_in_is_no_remain_while_its_process_lives(faces: Registry) -> None:
    with creation.scratch(faces.folder) as folder:
        assert doctor.check(faces) == []
        owner, _, mark = folder.name.rpartition("-")
        folder.with_name(f"{owner[:-1]}-{mark}").mkdir()  # of an earlier process of the same number
        assert len(doctor.check(faces)) == 1


def test_a_remain_that_goes_while_we_look_is_passed_over(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    litter(faces)

    def gone(path: Path) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(remains, "_measure", gone)
    assert remains.remains(faces) == []


@pytest.mark.parametrize(
    ("statement", "invariant", "subject"),
    [
        ("UPDATE versions SET note = 'x' WHERE number = 1", "I2", "faces@1"),
        ("UPDATE models SET classes = '[]'", "I2", "faces"),
        ("UPDATE branches SET head = 0", "I4", "head of faces@main"),
        ("UPDATE tags SET number = 0", "I4", "tag faces@good"),
        ("DELETE FROM tags", "I4", "tag faces@good"),
        ("INSERT INTO tags VALUES (1, 'forged', 1)", "I4", "tag faces@forged"),
        ("UPDATE versions SET digest = 'x' WHERE number = 2", "I4", "faces@2"),
        ("INSERT INTO tags VALUES (7, 'orphan', 1)", "I7", "registry.db"),
        ("UPDATE history SET payload = '{' WHERE seq = 2", "I5", "history entry 2"),
    ],
)
def test_a_forged_row_is_found(faces: Registry, learn: Learn, statement: str, invariant: str, subject: str) -> None:
    learn("one"), learn("two")
    faces.tag("faces", 1, "good")
    forge(faces, statement)
    findings = doctor.check(faces)
    assert (invariant, subject) in told(findings)
    assert all(finding.serious for finding in findings)


def test_a_fingerprint_that_does_not_follow_from_its_parent_is_found(faces: Registry, learn: Learn) -> None:
    """Also when whoever forged it knew how to make the record's own digest fit."""
    from kswap_registry.reading import version_digest

    learn("one"), learn("two")
    forge(faces, "UPDATE versions SET fingerprint = 'forged' WHERE number = 2")
    row = faces.database.row("SELECT * FROM versions WHERE number = 2")
    assert row is not None
    files = {item["name"]: item["digest"] for item in faces.database.rows("SELECT * FROM files WHERE version = 3")}
    forge(faces, f"UPDATE versions SET digest = '{version_digest('faces', dict(row), files, {})}' WHERE number = 2")
    assert told(doctor.check(faces)) == [("I2", "faces@2"), ("I4", "faces@2")]


def test_a_broken_page_is_found(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = faces.database.rows
    said = {"PRAGMA integrity_check": [("row 3 missing from index",)]}
    monkeypatch.setattr(faces.database, "rows", lambda query, *values: said.get(query) or rows(query, *values))
    assert told(doctor.check(faces)) == [("I7", "registry.db")]


def test_a_dead_operation_is_reported_until_the_next_writer(faces: Registry) -> None:
    with pytest.raises(KeyboardInterrupt), faces.operation("faces", kind="learn", method="m", spec={}):
        raise KeyboardInterrupt
    assert faces.database.value("SELECT state FROM operations") == "interrupted"
    faces.database.execute("UPDATE operations SET state = 'running', owner = 'here:1:2'")
    (finding,) = doctor.check(faces)
    assert (finding.invariant, finding.serious) == ("I4", False)
    with faces.exclusive():
        pass
    assert doctor.check(faces) == []


def test_a_key_others_can_read_or_that_is_gone_is_reported(faces: Registry) -> None:
    (faces.folder / "key").chmod(0o644)
    assert told(doctor.check(faces)) == [("disk", "key")]
    (faces.folder / "key").unlink()
    assert doctor.check(faces)[0].serious


def test_a_network_disk_is_reported(faces: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/home {place} nfs4 rw 0 0\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    (finding,) = doctor.check(faces)
    assert "nfs4" in finding.message
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "none")
    assert doctor.check(faces) == []


def test_a_mount_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "caf\u00e9"
    mounts = tmp_path / "mounts"
    mounts.write_bytes(b"/dev/sdb1 /media/caf\xe9 vfat rw 0 0\n" + f"server:/x {place} nfs4 rw 0 0\n".encode())
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    assert filesystem.network_kind(place) == "nfs4"
    assert filesystem.network_kind(tmp_path) == ""


def test_fixing_moves_into_quarantine_and_deletes_nothing(faces: Registry, learn: Learn) -> None:
    version = learn("one")
    path = blob(faces, version)
    spoil(path)
    left = litter(faces)
    moves = doctor.fix(faces, deep=True)
    assert [move.source for move in moves] == [path, *left]
    assert not any(source.exists() for source in [path, *left])
    assert all(move.target.exists() for move in moves)
    assert moves[0].target.read_bytes() == b"\0\0\0"
    assert faces.events()[-1].action == "quarantine"
    assert told(doctor.check(faces)) == [("I1", "faces@1 adapter.safetensors")]
    assert faces.versions("faces")[1] == version
    with pytest.raises(MissingBlob):
        blob(faces, version)
    assert doctor.fix(faces) == []


def test_a_dry_collection_removes_nothing(faces: Registry) -> None:
    left = litter(faces)
    collection = cleanup.gc(faces, timedelta(0))
    assert [remain.path for remain in collection.garbage] == left
    assert not collection.removed
    assert collection.size >= 9
    assert all(path.exists() for path in left)


def test_a_collection_keeps_what_is_young_or_referred_to(faces: Registry, learn: Learn) -> None:
    path = blob(faces, learn("one"))
    os.utime(path, (0, 0))
    young = litter(faces)
    assert cleanup.gc(faces, dry_run=False).garbage == []
    old = litter(faces, age=15 * 86400)
    assert cleanup.gc(faces, dry_run=False).removed
    assert young == old
    assert not any(left.exists() for left in old)
    assert path.exists()
    assert faces.events()[-1].payload["bytes"] == 6
    assert doctor.check(faces, deep=True) == []


def test_a_leap_of_the_clock_removes_nothing_at_first(faces: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    left = litter(faces, age=15 * 86400)
    later = clock.now() + timedelta(days=365 * 70)
    monkeypatch.setattr(clock, "now", lambda: later)
    collection = cleanup.gc(faces, dry_run=False)
    assert "clock" in collection.held_back
    assert not collection.removed
    assert all(path.exists() for path in left)
    assert cleanup.gc(faces, dry_run=False).removed


def test_a_collection_does_not_run_into_an_operation(faces: Registry) -> None:
    with faces.operation("faces", kind="learn", method="m", spec={}) as operation:
        (operation.folder / "adapter").write_text("one")
        with Registry.open(faces.folder, timeout=0.05) as second, pytest.raises(Busy):
            cleanup.gc(second, timedelta(0), dry_run=False)
        files = {"adapter": operation.folder / "adapter"}
        assert operation.commit(files, state={}, adapter="a", weights="w", metrics={}).number == 1


def test_a_blob_recorded_meanwhile_is_not_collected(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = blob(faces, learn("one"))
    remain = remains.Remain(path, "", 3, 1e9)
    monkeypatch.setattr(cleanup, "remains", lambda registry: [remain])
    assert cleanup.gc(faces, dry_run=False).removed
    assert path.exists()


def test_a_backup_is_restored_with_everything(faces: Registry, learn: Learn, tmp_path: Path) -> None:
    learn("one", accuracy=0.5)
    faces.tag("faces", 1, "good")
    copies.backup(faces, tmp_path / "backup")
    learn("two")
    with copies.restore(tmp_path / "backup", tmp_path / "again") as again:
        assert again.versions("faces") == faces.versions("faces")[:2]
        assert again.events() == faces.events()[:-1]
        assert again.commitment(b"a photo") == faces.commitment(b"a photo")
        assert blob(again, again.resolve("faces@1")).read_text() == "one"
        assert doctor.check(again, deep=True) == []


def test_a_backup_of_an_operation_in_progress_is_consistent(faces: Registry, tmp_path: Path) -> None:
    with faces.operation("faces", kind="learn", method="m", spec={}) as operation:
        copies.backup(faces, tmp_path / "backup")
        operation.commit({}, state={}, adapter="a", weights="w", metrics={})
    with Registry.open(tmp_path / "backup") as copy:
        assert copy.model("faces").head == 0


def test_a_dead_operation_does_not_stop_a_backup(faces: Registry, tmp_path: Path) -> None:
    with faces.operation("faces", kind="learn", method="m", spec={}):
        pass
    faces.database.execute("UPDATE operations SET state = 'running', owner = 'here:1:2'")
    copies.backup(faces, tmp_path / "backup")
    assert (tmp_path / "backup" / "registry.db").exists()


def test_a_backup_does_not_go_over_something(faces: Registry, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo").touch()
    for target in (tmp_path / "full", tmp_path / "full" / "photo", faces.folder):
        with pytest.raises(AlreadyExists):
            copies.backup(faces, target)
    (tmp_path / "empty").mkdir()
    copies.backup(faces, tmp_path / "empty")


@pytest.mark.parametrize("harm", [spoil, Path.unlink])
def test_a_damaged_blob_stops_a_backup_and_leaves_no_half_of_one(
    faces: Registry, learn: Learn, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    before = sorted(tmp_path.iterdir())
    harm(blob(faces, learn("one")))
    with pytest.raises((CorruptBlob, MissingBlob)):
        copies.backup(faces, tmp_path / "backup")
    assert sorted(tmp_path.iterdir()) == before


def test_an_unsound_backup_is_not_restored(faces: Registry, learn: Learn, tmp_path: Path) -> None:
    learn("one")
    forge(faces, "UPDATE branches SET head = 0")
    with pytest.raises(Damaged, match="not sound: head of faces@main"):
        copies.backup(faces, tmp_path / "backup")
    shutil.copytree(faces.folder, tmp_path / "copied")
    with pytest.raises(Damaged, match="not sound"):
        copies.restore(tmp_path / "copied", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_restore_needs_a_backup_and_its_key(faces: Registry, tmp_path: Path) -> None:
    with pytest.raises(NoRegistry):
        copies.restore(tmp_path / "nothing", tmp_path / "again")
    (faces.folder / "key").unlink()
    with pytest.raises(Damaged, match="key"):
        copies.restore(faces.folder, tmp_path / "again")


def test_too_little_room_is_said_before_the_work(faces: Registry) -> None:
    faces.require_space(1)
    with pytest.raises(StorageFull, match="are needed") as caught:
        faces.require_space(1 << 60)
    assert "free at least" in caught.value.hint
    assert "gc" in caught.value.hint
    with pytest.raises(StorageFull) as caught:
        filesystem.require_space(faces.folder, 1 << 60)
    assert "gc" not in caught.value.hint
