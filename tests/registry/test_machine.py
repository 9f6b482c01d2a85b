"""Random changes against a plain model of a registry: whatever the order, both tell the same."""

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kswap_registry import AlreadyExists, Registry, RegistryError, cleanup, copies, doctor, faults

NAMES = st.sampled_from(["red", "green", "blue"])
COMMIT_POINTS = sorted(name for name in faults.POINTS if name.startswith(("blob.", "commit.", "operation.after")))


class Machine(RuleBasedStateMachine):
    """The plain model: parents by number, heads by branch, tags, and how many entries the history has."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm"
        self.home = Path(mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        (self.home / "model").write_text("weights of the base")
        self.registry = Registry.create(self.home / "registry")
        self.registry.add_model(
            "faces", task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": self.home / "model"}
        )
        self.parents: dict[int, int | None] = {0: None}
        self.heads, self.tags, self.entries = {"main": 0}, dict[str, int](), 2

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.home)

    @rule(branch=st.data(), content=st.integers(0, 5))
    def learn(self, branch: st.DataObject, content: int) -> None:
        name = branch.draw(st.sampled_from(sorted(self.heads)))
        self._learn(name, content)
        self._grown(name)

    @rule(content=st.integers(0, 5))
    def diverge(self, content: int) -> None:
        with pytest.raises(ZeroDivisionError), self.registry.operation("faces", kind="learn", method="m", spec={}):
            _ = content / 0

    @rule(point=st.sampled_from(COMMIT_POINTS), mode=st.sampled_from(["kill", "enospc", "sigint"]))
    def learn_and_crash(self, point: str, mode: str) -> None:
        before = self.registry.resolve("faces").number
        child = os.fork()
        if child == 0:
            self._crash(f"{point}:{mode}")
        os.waitpid(child, 0)
        if self.registry.resolve("faces").number != before:
            self._grown("main")

    @rule(where=st.data())
    def move(self, where: st.DataObject) -> None:
        branch = where.draw(st.sampled_from(sorted(self.heads)))
        number = where.draw(st.sampled_from(sorted(self.parents)))
        self.registry.move_head("faces", number, branch=branch)
        self.entries += self.heads[branch] != number
        self.heads[branch] = number

    @rule(name=NAMES, where=st.data(), force=st.booleans())
    def tag(self, name: str, where: st.DataObject, force: bool) -> None:
        number = where.draw(st.sampled_from(sorted(self.parents)))
        taken = name in self.heads or (self.tags.get(name, number) != number and not force)
        if taken:
            with pytest.raises(AlreadyExists):
                self.registry.tag("faces", number, name, force=force)
            return
        self.registry.tag("faces", number, name, force=force)
        self.tags[name] = number
        self.entries += 1

    @rule(name=NAMES, where=st.data())
    def branch(self, name: str, where: st.DataObject) -> None:
        number = where.draw(st.sampled_from(sorted(self.parents)))
        if name in self.heads or name in self.tags:
            with pytest.raises(AlreadyExists):
                self.registry.branch("faces", name, number)
            return
        self.registry.branch("faces", name, number)
        self.heads[name] = number
        self.entries += 1

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = Registry.open(self.home / "registry")

    @rule()
    def collect(self) -> None:
        self.entries += cleanup.gc(self.registry, timedelta(0), dry_run=False).removed

    @precondition(lambda self: len(self.parents) > 3)
    @rule()
    def lose_and_restore(self) -> None:
        copies.backup(self.registry, self.home / "backup")
        self.registry.close()
        shutil.rmtree(self.home / "registry")
        self.registry = copies.restore(self.home / "backup", self.home / "registry")
        shutil.rmtree(self.home / "backup")

    @invariant()
    def both_tell_the_same(self) -> None:
        versions = self.registry.versions("faces")
        assert {version.number: version.parent for version in versions} == self.parents
        assert self.registry.branches("faces") == self.heads
        assert self.registry.tags("faces") == self.tags
        head = self.registry.resolve("faces")
        assert head.number == self.heads["main"]
        line = [version.number for version in self.registry.stack(head)]
        assert line == self._line(head.number)
        assert self.registry.resolve(f"faces@-{len(line)}").ref == "faces@base"
        assert [event.seq for event in self.registry.events()] == list(range(1, self.entries + 1))

    @invariant()
    def nothing_serious_is_found(self) -> None:
        assert [finding for finding in doctor.check(self.registry) if finding.serious] == []

    def _learn(self, branch: str, content: int) -> None:
        with self.registry.operation("faces", kind="learn", method="m", spec={}, branch=branch) as operation:
            adapter = operation.folder / "adapter"
            adapter.write_text(str(content))
            operation.commit({"adapter": adapter}, state={}, adapter=str(content), weights="w", metrics={})

    def _crash(self, fault: str) -> None:
        os.environ[faults.VARIABLE] = fault
        try:
            self.registry = Registry.open(self.home / "registry")
            self._learn("main", 9)
        except (RegistryError, KeyboardInterrupt):
            pass
        finally:
            sys.stdout.flush()
            os._exit(0)

    def _grown(self, branch: str) -> None:
        number = len(self.parents)
        self.parents[number] = self.heads[branch]
        self.heads[branch] = number
        self.entries += 1

    def _line(self, number: int) -> list[int]:
        parent = self.parents[number]
        return [] if parent is None else [*self._line(parent), number]


Machine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
test_any_order_of_changes = Machine.TestCase
