"""The forgetting record: signed, checked, and refused once anything in it was edited."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    return make_keys(tmp_path_factory.mktemp("keys"))


def make_keys(folder: Path) -> tuple[Path, Path]:
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    from cryptography.hazmat.primitives import serialization as form

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def audited(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose head was audited; not to be changed."""
    import shutil

    from kswap_registry import Registry

    home = Path(shutil.copytree(trained_home, tmp_path_factory.mktemp("audited") / "registry"))
    told = {
        "protocol": "audit-v1",
        "tier": "quick",
        "reference": "R4",
        "classes": ["three"],
        "original": "digits@1",
        "fewest": 45,
        "verdict": "FAIL",
        "residue": "SUPPRESSED",
        "measures": {"M1 forgotten": {"value": 0.9, "level": "fail", "votes": True}},
    }
    with Registry.open(home) as registry:
        registry.record("digits", "audit", told, number=2, command="audit digits")
    return home


@pytest.fixture
def record(audited: Path, keys: tuple[Path, Path], tmp_path: Path, invoke) -> Path:
    """A signed record."""
    file = tmp_path / "record.json"
    assert invoke(audited, "record", "digits", "--key", keys[0], "--request", "T-17", "-o", file).code == 0
    return file


def predicate(file: Path) -> Any:
    return json.loads(base64.b64decode(json.loads(file.read_text())["payload"]))["predicate"]


def edit(file: Path, change: Any) -> None:
    envelope = json.loads(file.read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    envelope["payload"] = base64.b64encode(json.dumps(statement, sort_keys=True).encode()).decode()
    file.write_text(json.dumps(envelope))


def test_a_record_holds(audited: Path, record: Path, keys, invoke) -> None:
    ran = invoke(audited, "verify", record, "--key", keys[1], "--history", "--json")
    assert ran.code == 0, ran.out
    assert (ran.json["verdict"], ran.json["signed"], ran.json["known"]) == ("FAIL", True, True)
    told = predicate(record)
    assert told["request"] == "T-17"
    assert [o["kind"] for o in told["operations"]] == ["learn", "forget"]
    assert told["residue"]["level"] == "SUPPRESSED"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["predicate"].update(request="T-18"),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s.update(predicateType="https://kswapctl.dev/forgetting-record/v9"),
        lambda s: s.clear(),
    ],
)
def test_an_edited_record_is_refused(audited: Path, record: Path, keys, invoke, change: Any) -> None:
    edit(record, change)
    assert invoke(audited, "verify", record, "--key", keys[1]).code == 12


def test_a_bettered_verdict_is_refused_without_a_key_too(audited: Path, record: Path, invoke) -> None:
    edit(record, lambda s: s["predicate"]["audit"].update(verdict="PASS"))
    ran = invoke(audited, "verify", record)
    assert ran.code == 12
    assert "its measures say FAIL" in ran.err


def test_bettered_measures_are_not_in_the_history(audited: Path, record: Path, invoke) -> None:
    def better(statement: Any) -> None:
        audit = statement["predicate"]["audit"]
        audit["measures"] = {"M5": {"value": 0.0, "level": "pass", "votes": True}}
        audit["verdict"] = "PASS"

    edit(record, better)
    assert invoke(audited, "verify", record).code == 0  # unsigned and unasked, nothing contradicts it
    assert invoke(audited, "verify", record, "--history").code == 12


def test_another_key_is_refused(audited: Path, record: Path, tmp_path: Path, invoke) -> None:
    other = make_keys(tmp_path)[1]
    assert invoke(audited, "verify", record, "--key", other).code == 12


def test_an_unsigned_record_has_no_signature_to_check(audited: Path, keys, tmp_path: Path, invoke) -> None:
    file = tmp_path / "unsigned.json"
    assert invoke(audited, "record", "digits", "-o", file).code == 0
    assert invoke(audited, "verify", file).code == 0
    assert invoke(audited, "verify", file, "--key", keys[1]).code == 12


@pytest.fixture
def twice(home: Path, audited: Path, tmp_path: Path, invoke) -> Path:
    """The record of a second audit that said better than the first, of the registry ``home``."""
    from kswap_registry import Registry

    with Registry.open(audited, read_only=True) as registry:
        failed = next(e.payload for e in registry.events("digits") if e.action == "audit")
    better = {**failed, "verdict": "INCONCLUSIVE", "measures": {}}
    with Registry.open(home) as registry:
        for payload in (failed, better):
            registry.record("digits", "audit", payload, number=2, command="audit digits")
    assert invoke(home, "record", "digits", "-o", tmp_path / "record.json").code == 0
    return tmp_path / "record.json"


def test_audits_before_the_recorded_one_are_told(home: Path, twice: Path, tmp_path: Path, invoke) -> None:
    assert "FAIL on three (quick, R4)" in invoke(home, "record", "digits", "-o", tmp_path / "again.json").out
    found = invoke(home, "verify", twice, "--history", "--json").json
    assert (found["verdict"], found["earlier"]) == ("INCONCLUSIVE", ["FAIL on three (quick, R4)"])


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["earlier audits"].clear(),
        lambda p: p["earlier audits"][0].update(verdict="PASS"),
        lambda p: p["earlier audits"][0].update(classes=["five"]),
        lambda p: p.update(version="digits@1"),
    ],
)
def test_audits_before_that_were_edited_are_not_in_the_history(home: Path, twice: Path, invoke, change: Any) -> None:
    edit(twice, lambda statement: change(statement["predicate"]))
    assert invoke(home, "verify", twice).code == 0
    assert invoke(home, "verify", twice, "--history").code == 12


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"payloadType": 1, "payload": "", "signatures": []}', b"\xff"])
def test_what_is_no_record_is_refused(audited: Path, tmp_path: Path, invoke, text: bytes) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(text)
    ran = invoke(audited, "verify", file)
    assert (ran.code, "codec" in ran.err) == (12, False)


def test_only_an_audited_version_has_a_record(audited: Path, tmp_path: Path, invoke) -> None:
    for ref in ("digits@1", "digits@base"):
        assert invoke(audited, "record", ref, "-o", tmp_path / "record.json").code == 2
    assert not (tmp_path / "record.json").exists()


def test_a_key_that_is_none_is_refused(audited: Path, keys, tmp_path: Path, invoke) -> None:
    file = tmp_path / "record.json"
    assert invoke(audited, "record", "digits", "--key", keys[1], "-o", file).code == 4
    assert invoke(audited, "record", "digits", "--key", "nowhere.pem", "-o", file).code == 3
    assert not file.exists()
    assert invoke(audited, "record", "digits", "--key", keys[0], "-o", file).code == 0
    assert invoke(audited, "verify", file, "--key", keys[0]).code == 4
    assert invoke(audited, "verify", file, "--key", "nowhere.pem").code == 3
