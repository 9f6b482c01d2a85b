"""Where a worker's cells are run: its registry, its gauge, and the operations that several of its cells begin with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from kswap_registry import Registry

from kswapctl.evaluation.scores import Evaluation
from kswapctl.methods import find_method
from kswapctl.operations.change import apply
from kswapctl.operations.studies.claims import write_synced
from kswapctl.operations.studies.gauge import Gauge
from kswapctl.progress import Progress
from kswapctl.spec import Change

MODEL = "start"
"""The base's name in a study's registries."""


@dataclass(frozen=True)
class Done:
    """An operation, registered."""

    number: int
    """The version that it made."""
    met: bool
    costs: dict[str, float]
    """Tunable ratio in percent, changed blocks, bytes, seconds, and the share that the rank could not store."""


class Workshop:
    """Does operations, each once: cells whose orders begin alike share what they begin with.

    What was done is noted in a file beside the registry, so that a worker that was stopped need not begin again.
    """

    def __init__(self, registry: Registry, study: str) -> None:
        """``study`` is its name, for the history."""
        self.registry = registry
        self.command = f"study {study}"
        self.cache = registry.folder.with_name(f"{registry.folder.name}-cache")
        """Activations that several methods start from."""
        self.notes = registry.folder.with_name(f"{registry.folder.name}-done.json")
        self.gauge = Gauge(registry, MODEL)
        self.measured: dict[tuple[object, ...], Evaluation] = {}
        made = {v.number for v in registry.versions(MODEL)}
        self.done = {key: done for key, done in self._noted().items() if done.number in made}

    def do(self, parent: int, change: Change, name: str, progress: Progress) -> Done:
        """``change`` on version ``parent``, on a branch of its own called after ``name``."""
        method = find_method(change.method, change.kind).configure(change.preset, change.settings)
        said = json.dumps([parent, change.to_json(), asdict(method)], sort_keys=True)
        key = hashlib.sha256(said.encode()).hexdigest()
        if key not in self.done:
            branch = self._new_branch(parent, name)
            cached = replace(change, cache_dir=str(self.cache))
            made = apply(self.registry, f"{MODEL}@{branch}", cached, self.command, progress)
            costs = {
                "ratio": 100 * made.outcome.adapter.values / self.registry.model(MODEL).spec["parameters"],
                "blocks": len(made.outcome.changed),
                "size": made.version.size,
                "seconds": made.seconds,
                "lost": made.outcome.lost,
            }
            self.done[key] = Done(made.version.number, made.outcome.met, costs)
            write_synced(self.notes, {k: asdict(d) for k, d in self.done.items()})
        return self.done[key]

    def scores(self, number: int, data: Sequence[str]) -> Evaluation:
        """How version ``number`` and the base do on the test part."""
        key = number, *data
        if key not in self.measured:
            self.measured[key] = self.gauge.scores(self.registry.resolve(f"{MODEL}@{number}"), data)
        return self.measured[key]

    def close(self) -> None:
        """Throw away what only saved time."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def _noted(self) -> dict[str, Done]:
        """What the notes tell; nothing where they cannot be read, which only costs time."""
        try:
            return {key: Done(**value) for key, value in json.loads(self.notes.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _new_branch(self, parent: int, name: str) -> str:
        """A branch at ``parent``; a cell that was killed has left one, so each try has its own."""
        taken = self.registry.branches(MODEL)
        number = 1
        while (branch := f"cell-{name[:40]}-{name[-8:]}-{number}") in taken:  # a branch begins with a letter
            number += 1
        self.registry.branch(MODEL, branch, parent)
        return branch
