"""Purge a model whose classes were forgotten: what knew them goes from the registry, its history stays."""

from __future__ import annotations

from dataclasses import dataclass

from kswap_registry import Registry, purge

from kswapctl.errors import UsageError
from kswapctl.operations.residue import knowing, shipped_anywhere, with_twins
from kswapctl.operations.versions import knowledge_of


@dataclass(frozen=True)
class Purging:
    """What went, or would go, and what stays out of reach."""

    purge: purge.Purge
    forgotten: tuple[str, ...]
    """The classes for whose sake it goes."""
    elsewhere: tuple[str, ...]
    """Files written from versions that know them, which nobody can take back."""


def plan_purge(registry: Registry, name: str) -> Purging:
    """What would go. Every branch must stand at a version that forgot, and be a model of its own, merged."""
    model = registry.model(name)
    forgotten: dict[str, None] = {}
    for branch, number in registry.branches(name).items():
        head = registry.resolve(f"{name}@{number or 'base'}")
        gone = knowledge_of(model, head).forgotten
        if not gone:
            raise UsageError(
                f"branch {branch} of {name} stands at {head.ref}, which has forgotten nothing",
                f"move it to a version that has: kswapctl branch {name} {branch} --to V",
            )
        forgotten |= dict.fromkeys(gone)
    knew = with_twins(registry, knowing(registry, name, forgotten))
    elsewhere = dict.fromkeys(f"{what}: {place}" for what, place in shipped_anywhere(registry, knew))
    return Purging(purge.plan(registry, name), tuple(forgotten), tuple(elsewhere))


def purge_model(registry: Registry, name: str, confirm: str, command: str) -> Purging:
    """Remove it; ``confirm`` repeats the name."""
    planned = plan_purge(registry, name)
    done = purge.purge(registry, name, confirm=confirm, command=command)
    return Purging(done, planned.forgotten, planned.elsewhere)
