"""Purging: a model's files go, its rows and the history stay, and nothing goes that a head still needs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kswap_registry import (
    Damaged,
    NotConfirmed,
    PurgedBlob,
    Registry,
    StillNeeded,
    Version,
    copies,
    doctor,
    purge,
    tombstones,
    verify_history,
)


def add(registry: Registry, name: str, folder: Path, content: str, fingerprint: str) -> None:
    file = folder / f"{name}.model"
    file.write_text(content)
    registry.add_model(
        name, task="t", source="s", spec={}, classes=["a"], fingerprint=fingerprint, files={"model": file}
    )


def learn(registry: Registry, name: str, content: str, weights: str, branch: str = "main") -> Version:
    with registry.operation(name, kind="forget", method="m", spec={}, branch=branch) as operation:
        adapter = operation.folder / "adapter"
        adapter.write_text(content)
        return operation.commit(
            {"adapter": adapter}, state={}, adapter=content, weights=weights, metrics={"accuracy": 1}
        )


@contextmanager
def forgotten(folder: Path) -> Iterator[Registry]:
    """faces, a version that forgot, and clean, which is what it merges to."""
    with Registry.create(folder / "registry") as registry:
        add(registry, "faces", folder, "base", "f")
        learn(registry, "faces", "one", "w")
        add(registry, "clean", folder, "merged", "w")
        yield registry


def serious(registry: Registry) -> list[str]:
    return [f.message for f in doctor.check(registry, deep=True) if f.serious]


def test_a_plan_only_tells(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        before = len(registry.events())
        plan = purge.plan(registry, "faces")
        assert (len(plan.blobs), plan.size, plan.replaced, plan.removed) == (2, 7, {"main": "clean"}, False)
        assert all(registry.blob(blob.digest, verify=True) for blob in plan.blobs)
        assert len(registry.events()) == before


def test_a_purge_takes_the_files_and_keeps_the_skeleton(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        digest = registry.model("faces").files["model"]
        assert purge.purge(registry, "faces", confirm="faces").removed
        assert not registry.store.path(digest).exists()
        assert [v.ref for v in registry.versions("faces")] == ["faces@base", "faces@1"]
        assert digest in registry.events("faces")[-1].payload["purged"]
        assert verify_history(registry).first_bad is None
        assert doctor.check(registry, deep=True) == []
        with pytest.raises(PurgedBlob, match="purged at"):
            registry.blob(digest)
        assert tombstones.missing(registry, registry.resolve("faces@1")) == {"adapter": "purged"}
        assert registry.blob(registry.model("clean").files["model"], verify=True)


def test_a_purge_wants_the_name(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        with pytest.raises(NotConfirmed, match="'face' is not"):
            purge.purge(registry, "faces", confirm="face")
        assert len(purge.plan(registry, "faces").blobs) == 2


def test_a_head_without_replacement_keeps_its_files(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        registry.branch("faces", "night", 0)
        with pytest.raises(StillNeeded, match="faces@base needs the files"):
            purge.purge(registry, "faces", confirm="faces")
        registry.move_head("faces", 1, branch="night")
        assert purge.purge(registry, "faces", confirm="faces").replaced == {"main": "clean", "night": "clean"}


def test_a_damaged_replacement_is_none(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        path = registry.blob(registry.model("clean").files["model"])
        path.chmod(0o644)
        path.write_text("MERGED")
        with pytest.raises(StillNeeded):
            purge.plan(registry, "faces")


def test_what_another_model_is_composed_of_stays_until_that_is_purged(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        add(registry, "twin", tmp_path, "base", "f")
        learn(registry, "twin", "two", "x")
        base = registry.model("twin").files["model"]
        assert purge.purge(registry, "faces", confirm="faces").kept == {base: "twin@1"}
        assert registry.blob(base)
        add(registry, "clean2", tmp_path, "merged too", "x")
        assert base in {blob.digest for blob in purge.purge(registry, "twin", confirm="twin").blobs}
        assert serious(registry) == []


def test_what_another_model_needs_stays_though_that_lacks_a_file(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        add(registry, "twin", tmp_path, "base", "f")
        version = learn(registry, "twin", "two", "x")
        registry.store.path(version.files["adapter"]).unlink()  # it may come back from a backup
        base = registry.model("twin").files["model"]
        assert purge.purge(registry, "faces", confirm="faces").kept == {base: "twin@1"}
        assert registry.blob(base, verify=True)


def test_what_doctor_put_aside_goes_too_unless_another_model_has_it(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        left = registry.folder / "tmp" / "left"
        left.mkdir()
        (left / "model.safetensors").write_text("base")
        dangling = registry.store.path("ab" * 32)
        dangling.parent.mkdir(parents=True, exist_ok=True)
        dangling.write_text("who knows")
        doctor.fix(registry)
        other = registry.folder / "quarantine" / "20260101T000000-0" / f"0-{registry.model('clean').files['model']}"
        other.parent.mkdir(parents=True)
        other.write_text("merged, damaged")
        assert len(list((registry.folder / "quarantine").glob("*/*"))) == 3
        purge.purge(registry, "faces", confirm="faces")
        assert list((registry.folder / "quarantine").glob("*/*")) == [other]


def test_copies_in_quarantine_and_remains_go_too(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        digest = registry.model("faces").files["model"]
        kept = registry.folder / "quarantine" / "20260101T000000-0" / f"0-{digest}"
        kept.parent.mkdir(parents=True)
        shutil.copyfile(registry.blob(digest), kept)
        left = registry.folder / "tmp" / "left"
        left.write_text("of a merge")
        purge.purge(registry, "faces", confirm="faces")
        assert not kept.exists()
        assert not left.exists()


def test_a_purge_that_was_cut_short_is_found_and_finished(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        digest = registry.model("faces").files["model"]
        content = registry.blob(digest).read_bytes()
        purge.purge(registry, "faces", confirm="faces")
        registry.store.path(digest).write_bytes(content)  # as if it had not gone
        found = doctor.check(registry)
        assert [(f.serious, f.message) for f in found] == [(False, "was purged and is still here: purge again")]
        entries = len(registry.events())
        purge.purge(registry, "faces", confirm="faces")
        assert len(registry.events()) == entries
        assert doctor.check(registry) == []


def test_a_file_that_is_stored_again_is_no_longer_purged(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        purge.purge(registry, "faces", confirm="faces")
        add(registry, "again", tmp_path, "base", "f")
        path = registry.blob(registry.model("again").files["model"])
        path.unlink()
        assert any("is missing" in message for message in serious(registry))


def test_a_backup_of_a_purged_registry_is_whole(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        purge.purge(registry, "faces", confirm="faces")
        copies.backup(registry, tmp_path / "backup")
    with copies.restore(tmp_path / "backup", tmp_path / "restored") as restored:
        assert serious(restored) == []
        with pytest.raises(PurgedBlob):
            restored.blob(restored.model("faces").files["model"])


def test_a_history_that_cannot_be_read_vouches_for_no_purge(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        purge.purge(registry, "faces", confirm="faces")
        digest = registry.model("faces").files["model"]
        registry.database.execute("DROP TRIGGER history_is_not_edited")
        registry.database.execute("UPDATE history SET payload = '{' WHERE seq = 1")
        with pytest.raises(Damaged, match="history entry 1"):
            registry.blob(digest)


def test_what_lies_in_quarantine_alone_is_told_before_it_goes(tmp_path: Path) -> None:
    with forgotten(tmp_path) as registry:
        (blob, *_) = purge.plan(registry, "faces").blobs
        path = registry.store.path(blob.digest)
        path.chmod(0o644)
        path.write_text("damaged")
        doctor.fix(registry, deep=True)
        assert list((registry.folder / "quarantine").rglob(f"*-{blob.digest}"))
        purge.purge(registry, "faces", confirm="faces")
        assert blob.digest in tombstones.tombstones(registry.database)
        assert not list((registry.folder / "quarantine").rglob(f"*-{blob.digest}"))
        assert serious(registry) == []
