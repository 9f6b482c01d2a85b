"""An operation that is stopped, in a process of its own: its exit code, what it is recorded as, and what comes next."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kswap_registry import Registry, doctor

from kswapctl.cli import main
from kswapctl.operations import change

LINE = ("forget", "digits", "--classes", "two")


def begin(home: Path, work: Callable[[], Any]) -> int:
    """Start ``kswapctl forget`` in a child, with ``work`` in the place of training; returns the child's id."""
    child = os.fork()
    if child == 0:
        code: Any = 1
        try:
            change.operate = lambda *_: work()  # type: ignore[assignment]
            sys.argv = ["kswapctl", *LINE]
            os.environ["KSWAP_HOME"] = str(home)
            main()
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stop(home: Path, ready: Path, *signals: signal.Signals) -> int:
    """The exit code of an operation that gets ``signals`` once its training has begun."""
    child = begin(home, lambda: (ready.touch(), time.sleep(60)))
    while not ready.exists():
        time.sleep(0.005)
    for number in signals:
        os.kill(child, number)
    return code_of(child)


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143)],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGTERM"],
)
def test_a_stopped_operation_changes_nothing_and_is_recorded(
    home: Path, state, tmp_path: Path, signals: tuple[signal.Signals, ...], code: int
) -> None:
    before = state(home)
    assert stop(home, tmp_path / "ready", *signals) == code
    with Registry.open(home) as registry:
        attempt = registry.attempts("digits")[-1]
        assert attempt.command == "kswapctl " + " ".join(LINE)
        if len(signals) == 1:
            assert attempt.state == "interrupted"
        with registry.exclusive():  # the next writer needs no unlocking, and marks what could not mark itself
            pass
        assert registry.attempts("digits")[-1].state in ("interrupted", "failed")
        assert [finding for finding in doctor.check(registry, deep=True) if finding.serious] == []
    assert state(home)[0] == before[0]


def test_repeated_after_an_interrupt_it_makes_the_same_adapter(home: Path, invoke, tmp_path: Path) -> None:
    """There is nothing to resume: the same seed takes the same way from the start."""
    other = Path(shutil.copytree(home, tmp_path / "other"))
    assert stop(home, tmp_path / "ready", signal.SIGINT) == 130
    made = [invoke(place, *LINE, "--preset", "fewest", "--json").json[0]["version"] for place in (home, other)]
    assert made == ["digits@3", "digits@3"]
    shown = [invoke(place, "show", "digits@3", "--json").json for place in (home, other)]
    assert shown[0]["files"] == shown[1]["files"]


@pytest.mark.parametrize("what", ["torch", "numpy"])
def test_without_memory_nothing_is_registered(home: Path, state, what: str) -> None:
    import numpy

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**26
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        torch.ones(2**28) if what == "torch" else numpy.ones(2**28)

    before = state(home)
    assert code_of(begin(home, work)) == 16
    with Registry.open(home, read_only=True) as registry:
        assert registry.attempts("digits")[-1].state == "failed"
    assert state(home) == before


def test_too_little_room_is_told_before_training(home: Path, run, state, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(home)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*free[:4], 100_000 // free.f_frsize, *free[5:])))
    monkeypatch.setattr(change, "operate", lambda *_: pytest.fail("it trains"))
    before = state(home)
    ran = run(*LINE)
    assert (ran.code, "are needed" in ran.err) == (16, True), ran.err
    assert state(home) == before
