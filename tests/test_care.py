"""Doctor, clean-up, backup, restore, branches and the proof of the history, from the command line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kswapctl.operations import environment


def adapter_of(home: Path, run: Any, ref: str = "digits@2") -> Path:
    digest = run("show", ref, "--json").json["files"]["adapter_model.safetensors"]
    return home / "blobs" / digest[:2] / digest


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_doctor_finds_nothing_wrong_with_a_sound_registry(look):
    ran = look("doctor", "--deep", "--json")
    assert ran.code == 0
    assert ran.json == {"sound": True, "findings": [], "moved": []}


def test_doctor_names_the_version_of_a_damaged_blob(home, run):
    flip(adapter_of(home, run), -5)
    assert run("doctor").code == 0  # its size is right, and nobody asked to read it
    ran = run("doctor", "--deep", "--json")
    assert ran.code == 12
    assert [(f["invariant"], f["subject"]) for f in ran.json["findings"]] == [
        ("I1", "digits@2 adapter_model.safetensors"),
        ("I6", "digits@2"),
    ]


def test_doctor_puts_damage_into_quarantine_and_deletes_nothing(home, run):
    blob = adapter_of(home, run)
    flip(blob, -5)
    damaged = blob.read_bytes()
    ran = run("doctor", "--deep", "--fix", "--json")
    assert ran.code == 12  # the version is still without its adapter
    assert not blob.exists()
    assert Path(ran.json["moved"][0]["to"]).read_bytes() == damaged
    assert run("rollback", "digits", "--to", "1").code == 0  # what is whole still works


def test_doctor_composes_what_it_checks(home, run, monkeypatch):
    from kswapctl.operations import versions

    monkeypatch.setattr(versions, "compose", lambda base, adapters: dict(base))
    ran = run("doctor", "--deep", "--json")
    assert [(f["invariant"], f["subject"]) for f in ran.json["findings"]] == [("I6", "digits@2")]


def test_doctor_names_the_pair_that_does_not_fit(run, monkeypatch):
    real = environment.importlib.import_module

    def broken(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(environment.importlib, "import_module", broken)
    ran = run("doctor", "--env", "--json")
    assert ran.code == 1
    assert [lib["name"] for lib in ran.json if lib["problem"]] == ["torchvision"]
    assert "same index" in next(lib["hint"] for lib in ran.json if lib["problem"])


def test_doctor_finds_that_these_libraries_fit(run):
    ran = run("doctor", "--env", "--json")
    assert ran.code == 0
    assert [lib["name"] for lib in ran.json] == list(environment.LIBRARIES)


def test_a_command_that_meets_the_mismatch_says_so_once(run, monkeypatch):
    from kswapctl.operations import versions

    def broken(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(versions, "load_base", broken)
    ran = run("doctor", "--deep")
    assert ran.code == 1
    assert "torchvision does not fit this torch" in ran.err


def litter(home: Path) -> Path:
    scratch = home / "tmp" / "left"
    scratch.mkdir()
    (scratch / "part").write_text("of an adapter")
    for path in (scratch / "part", scratch):
        os.utime(path, (1, 1))
    return scratch


def test_clean_up_only_tells_until_it_is_told_to_apply(home, run):
    scratch = litter(home)
    ran = run("gc", "--json")
    assert ran.json["files"] == [{"file": "tmp/left", "what": "left by something that did not end", "bytes": 4109}]
    assert scratch.exists()
    assert run("gc", "--apply", "--json").json["removed"] is True
    assert not scratch.exists()


@pytest.mark.parametrize(("grace", "files"), [("0", 1), ("1h", 0), ("30m", 0), ("2d", 0)])
def test_clean_up_spares_what_is_young(home, run, grace, files):
    (home / "tmp" / "young").write_text("of a command that runs")
    assert len(run("gc", "--grace", grace, "--json").json["files"]) == files


@pytest.mark.parametrize("grace", ["soon", "-1d", "12", "9999999d", "1w"])
def test_a_grace_that_is_no_time_is_a_usage_error(run, grace):
    assert run("gc", "--grace", grace).code == 2


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_a_backup_restored_is_the_same_registry(home, run, invoke, tmp_path, state, name):
    assert run("backup", tmp_path / name).code == 0
    again = tmp_path / "again"
    assert invoke(None, "restore", tmp_path / name, "--registry", again).code == 0
    assert state(again) == state(home)
    assert invoke(again, "doctor", "--deep").code == 0
    assert run("log", "--head", "--json").json == invoke(again, "log", "--head", "--json").json


def test_a_backup_in_one_file_is_for_its_owner_only(run, tmp_path):
    run("backup", tmp_path / "copy.tar")
    assert (tmp_path / "copy.tar").stat().st_mode & 0o077 == 0
    assert run("backup", tmp_path / "copy.tar").code == 2
    assert run("backup", tmp_path / "copy.tar", "--overwrite").code == 0


def test_a_damaged_backup_is_refused_and_leaves_nothing(home, run, invoke, tmp_path):
    run("backup", tmp_path / "copy")
    flip(tmp_path / "copy" / adapter_of(home, run).relative_to(home), -5)
    assert invoke(None, "restore", tmp_path / "copy", "--registry", tmp_path / "again").code == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "registry"]


@pytest.mark.parametrize("kind", ["outside", "link", "other"])
def test_a_backup_file_that_was_not_made_here_is_refused(run, invoke, tmp_path, kind):
    member = tarfile.TarInfo({"outside": "../evil", "link": "key", "other": "blobs/evil"}[kind])
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member)
    assert invoke(None, "restore", tmp_path / "evil.tar", "--registry", tmp_path / "again").code == 15
    assert not (tmp_path / "again").exists()


def test_half_a_backup_file_is_refused(run, invoke, tmp_path):
    run("backup", tmp_path / "copy.tar")
    content = (tmp_path / "copy.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(content[: len(content) // 2])
    assert invoke(None, "restore", tmp_path / "half.tar", "--registry", tmp_path / "again").code == 12
    assert not (tmp_path / "again").exists()


def test_two_lines_of_a_model_live_side_by_side(run):
    assert run("branch", "digits@1", "night").code == 0
    assert run("branch", "digits", "--json").json == {"main": "digits@2", "night": "digits@1"}
    assert run("show", "digits@night", "--json").json["number"] == 1
    assert run("branch", "digits", "night", "--to", "base", "--json").json["night"] == "digits@base"
    assert run("branch", "digits", "night").code == 2  # it is there already
    assert run("branch", "digits", "nowhere", "--to", "1").code == 3
    assert run("branch", "digits@1", "../x").code == 2
    assert run("doctor").code == 0


def test_the_head_of_the_history_proves_what_came_before(home, run):
    kept = run("log", "--head", "--json").json["head"]
    assert run("log", "--verify", "--kept", kept).code == 0
    run("rollback", "digits")
    assert run("log", "--verify", "--kept", kept).code == 0
    assert run("log", "--verify", "--kept", "0" * 63 + "1").code == 12
    assert run("log", "--kept", f"{kept[:16].upper()}...").code == 0


def test_an_edited_history_is_found(home, run):
    with sqlite3.connect(home / "registry.db") as database:
        database.execute("DROP TRIGGER history_is_not_edited")
        database.execute("UPDATE history SET user = 'somebody else' WHERE seq = 2")
        database.execute(
            "CREATE TRIGGER history_is_not_edited BEFORE UPDATE ON history\n"
            "BEGIN SELECT RAISE(ABORT, 'history only grows'); END"
        )
    database.close()
    ran = run("log", "--verify", "--json")
    assert (ran.code, ran.json["message"]) == (
        12,
        "the history is not what it was: entry 2 was changed after it was written",
    )
    assert run("doctor").code == 12


def test_care_needs_no_torch(trained_home, tmp_path):
    script = """
import sys
from typer.testing import CliRunner
from kswapctl.cli import app
for line in sys.argv[1:]:
    result = CliRunner().invoke(app, line.split("|"))
    assert result.exit_code == 0, (line, result.output)
heavy = {"torch", "timm", "peft", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    lines = ["doctor", "gc", f"backup|{tmp_path / 'copy'}", "branch|digits", "log|--verify", "log|--head"]
    done = subprocess.run(
        [sys.executable, "-c", script, *lines],
        env=os.environ | {"KSWAP_HOME": str(trained_home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
