"""Where a worker's cells are run: its registry, its gauge, and the operations that several of its cells begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kswap_registry import Registry, Version

from kswapctl.evaluation.scores import Evaluation
from kswapctl.operations.change import apply
from kswapctl.operations.studies.gauge import Gauge
from kswapctl.progress import Progress
from kswapctl.spec import Change

MODEL = "start"
"""The base's name in a study's registries."""


@dataclass(frozen=True)
class Done:
    """An operation, registered."""

    version: Version
    met: bool
    costs: dict[str, float]
    """Tunable ratio in percent, changed blocks, bytes, seconds, and the share that the rank could not store."""


class Workshop:
    """Does operations, each once: cells whose orders begin alike share what they begin with."""

    def __init__(self, registry: Registry, study: str, cache: Path) -> None:
        """``study`` is its name, for the history; ``cache`` a folder for what several methods start from."""
        self.registry = registry
        self.cache = str(cache)
        self.command = f"study {study}"
        self.gauge = Gauge(registry, MODEL)
        self.done: dict[tuple[int, str], Done] = {}

    def do(self, parent: int, change: Change, name: str, progress: Progress) -> Done:
        """``change`` on version ``parent``, on a branch of its own called after ``name``."""
        key = parent, json.dumps(change.to_json(), sort_keys=True)
        if key not in self.done:
            branch = self._new_branch(parent, name)
            cached = replace(change, cache_dir=self.cache)
            made = apply(self.registry, f"{MODEL}@{branch}", cached, self.command, progress)
            costs = {
                "ratio": 100 * made.outcome.adapter.values / self.registry.model(MODEL).spec["parameters"],
                "blocks": len(made.outcome.changed),
                "size": made.version.size,
                "seconds": made.seconds,
                "lost": made.outcome.lost,
            }
            self.done[key] = Done(made.version, made.outcome.met, costs)
        return self.done[key]

    def scores(self, version: Version, data: Sequence[str]) -> Evaluation:
        """How ``version`` and the base do on the test part."""
        return self.gauge.scores(version, data)

    def _new_branch(self, parent: int, name: str) -> str:
        """A branch at ``parent``; a cell that was killed has left one, so each try has its own."""
        taken = self.registry.branches(MODEL)
        number = 1
        while (branch := f"{name[:40]}-{name[-8:]}-{number}") in taken:
            number += 1
        self.registry.branch(MODEL, branch, parent)
        return branch
