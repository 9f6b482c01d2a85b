"""Two learners on one head: the second is told, loses no work, and gets no other parent unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kswap_registry import Registry

from kswapctl.operations import change

LINE = ("forget", "digits", "--classes", "two", "--preset", "fewest")


def overtake(home: Path) -> None:
    """Another process puts a version on the head."""
    with Registry.open(home) as registry:
        head = registry.resolve("digits")
        files = {name: registry.blob(digest) for name, digest in head.files.items()}
        with registry.operation("digits", kind="forget", method="other", spec=head.spec) as operation:
            operation.commit(files, state=head.state, adapter="0" * 64, weights=head.weights, metrics={})


@pytest.fixture
def waiting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else is quicker, while the command waits for its turn."""
    choose = change.choose

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        overtake(home)
        return choose(*arguments)

    monkeypatch.setattr(change, "choose", slow)


@pytest.fixture
def unlocked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock does not lock, as on some network disks: somebody else is quicker, while the command trains."""
    import fcntl

    operate = change.operate

    def slow(*arguments: Any) -> Any:
        overtake(home)
        return operate(*arguments)

    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    monkeypatch.setattr(change, "operate", slow)


def test_who_waited_is_told_before_any_work(home: Path, run, waiting: None) -> None:
    ran = run(*LINE)
    assert ran.code == 11
    assert "moved from digits@2 to digits@3" in ran.err
    assert "kswapctl branch digits@2 NEW" in ran.err
    assert run("branch", "digits", "--json").json == {"main": "digits@3"}
    run("branch", "digits@2", "NEW")
    assert run(LINE[0], "digits@NEW", *LINE[2:]).code == 0


def test_who_waited_may_keep_to_the_old_head(home: Path, run, waiting: None) -> None:
    ran = run(*LINE, "--onto", "mine")
    assert ran.code == 0, ran.err
    assert "digits@mine" in ran.err
    assert run("branch", "digits", "--json").json == {"main": "digits@3", "mine": "digits@4"}
    assert run("show", "digits@mine", "--json").json["parent"] == 2
    assert run("doctor", "--json").json["findings"] == []


def test_work_that_was_done_is_kept_on_a_branch(home: Path, run, unlocked: None) -> None:
    ran = run(*LINE)
    assert ran.code == 11
    assert "kept as digits@4, on the branch digits@aside-1" in ran.err
    assert run("branch", "digits", "--json").json == {"aside-1": "digits@4", "main": "digits@3"}
    assert run("show", "digits@4", "--json").json["parent"] == 2


def test_without_a_race_onto_does_nothing(run) -> None:
    assert run(*LINE, "--onto", "mine").code == 0
    assert run("branch", "digits", "--json").json == {"main": "digits@3"}


@pytest.mark.parametrize("name", ["main", "-rf", "a/b", "1"])
def test_a_name_that_cannot_be_is_refused_before_any_work(run, home: Path, state, name: str) -> None:
    before = state(home)
    assert run(*LINE, f"--onto={name}").code == 2
    assert state(home) == before
