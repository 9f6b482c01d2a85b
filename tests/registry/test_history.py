import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import Damaged, Registry, Version, clock, doctor, verify_history
from kswap_registry.digests import ORIGIN, event_digest

Learn = Callable[..., Version]

UPDATES = [
    "UPDATE history SET command = 'nothing'",
    "DELETE FROM history WHERE seq = 2",
    "INSERT OR REPLACE INTO history SELECT * FROM history WHERE seq = 2",
    "UPDATE versions SET note = 'nothing'",
    "DELETE FROM versions",
    "UPDATE metrics SET value = 1",
    "DELETE FROM metrics",
    "UPDATE files SET name = 'x'",
    "DELETE FROM files",
    "UPDATE models SET source = 'x'",
    "DELETE FROM models",
    "INSERT INTO history SELECT seq + 10, time, model, action, number, previous, command, user, payload, 'x', 'y'"
    " FROM history WHERE seq = 1",
]


def forge(registry: Registry, *statements: str) -> None:
    """Change the database as somebody would who takes the triggers away and puts them back."""
    connection = sqlite3.connect(registry.folder / "registry.db", isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


def test_entries_are_chained_from_the_origin(faces: Registry, learn: Learn) -> None:
    learn("one")
    first, second, third = faces.events()
    assert first.parent_digest == ORIGIN
    assert (second.parent_digest, third.parent_digest) == (first.digest, second.digest)
    assert verify_history(faces).head == third.digest
    assert verify_history(faces).first_bad is None


def test_a_digest_is_sha256_of_the_parent_and_the_canonical_entry() -> None:
    """sha256(b'00{"a":1,"b":"x"}'), computed with sha256sum."""
    assert event_digest("00", {"b": "x", "a": 1}) == (
        "a5294c370619e6afe6d01ad0d1d1086dffbba013c8b4c2c92a8427e6a79e3220"
    )


@pytest.mark.parametrize("statement", UPDATES)
def test_the_database_refuses_to_change_what_was_written(faces: Registry, learn: Learn, statement: str) -> None:
    learn("one", accuracy=0.5)
    with pytest.raises(Damaged, match=r"only grows|is a chain"):
        faces.database.execute(statement)


@pytest.mark.parametrize(
    ("statements", "bad"),
    [
        (["UPDATE history SET command = 'nothing' WHERE seq = 3"], 3),
        (["UPDATE history SET time = '2000-01-01' WHERE seq = 1"], 1),
        (["UPDATE history SET payload = '{}' WHERE seq = 2"], 2),
        (["DELETE FROM history WHERE seq = 2"], 2),
        (["DELETE FROM history WHERE seq >= 4"], 4),
        (["DELETE FROM history"], 1),
        (["UPDATE history SET seq = 99 WHERE seq = 2", "UPDATE history SET seq = 2 WHERE seq = 3"], 2),
        (["UPDATE history SET parent_digest = digest WHERE seq = 3"], 3),
    ],
)
def test_an_edit_removal_or_reorder_is_found(faces: Registry, learn: Learn, statements: list[str], bad: int) -> None:
    learn("one"), learn("two"), learn("three")
    forge(faces, *statements)
    verification = verify_history(faces)
    assert verification.first_bad == bad
    assert str(bad) in verification.reason
    assert any(finding.invariant == "I5" for finding in doctor.check(faces))


def test_a_cut_that_hides_its_traces_is_found_by_a_kept_digest(faces: Registry, learn: Learn) -> None:
    learn("one")
    kept = verify_history(faces).head
    learn("two")
    assert verify_history(faces, kept).first_bad is None
    forge(faces, "DELETE FROM history WHERE seq >= 3", "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'history'")
    assert verify_history(faces).first_bad is None
    assert verify_history(faces, kept).first_bad == 3


def test_a_changed_version_is_found_when_it_is_read(faces: Registry, learn: Learn) -> None:
    learn("one", accuracy=0.5)
    forge(faces, "UPDATE metrics SET value = 0.9")
    with pytest.raises(Damaged, match="faces@1 was changed"):
        faces.resolve("faces@1")
    assert faces.resolve("faces@base").number == 0


def test_a_changed_model_is_found_when_it_is_read(faces: Registry) -> None:
    forge(faces, "UPDATE models SET source = 'elsewhere'")
    with pytest.raises(Damaged, match="faces was changed"):
        faces.model("faces")


def test_entries_keep_their_order_when_the_clock_goes_back(
    faces: Registry, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn("one")
    for moment in ("1970-01-01T00:00:00.000000+00:00", "2100-01-01T00:00:00.000000+00:00"):
        monkeypatch.setattr(clock, "stamp", lambda moment=moment: moment)
        learn(moment)
    assert [event.seq for event in faces.events()] == [1, 2, 3, 4, 5]
    assert verify_history(faces).first_bad is None
    assert [version.number for version in faces.versions("faces")] == [0, 1, 2, 3]


def test_a_damaged_payload_is_reported(faces: Registry, tmp_path: Path) -> None:
    forge(faces, "UPDATE history SET payload = '{' WHERE seq = 1")
    with pytest.raises(Damaged, match="history entry 1"):
        faces.events()
