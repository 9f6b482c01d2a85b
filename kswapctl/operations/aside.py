"""Two learners on one head: the second is told, and its work is kept on a branch. No parent changes unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kswap_registry import AlreadyExists, HeadMoved, Operation, Registry, Version
from kswap_registry.names import check_label

from kswapctl.progress import Progress


def check_free_name(registry: Registry, model: str, name: str) -> None:
    """Refuse a name that no new branch of ``model`` can have, before any work is done for it."""
    check_label(name, "branch")
    if name in registry.branches(model) or name in registry.tags(model):
        raise AlreadyExists(f"there is a branch or tag {name!r} of {model} already", "choose another name for --onto")


def check_head(registry: Registry, name: str, expected: str) -> None:
    """Between two operations of ours the head of ``name`` must stay ``expected``, else it is a :class:`HeadMoved`."""
    found = registry.resolve(name)
    if found.ref != expected:
        raise moved(name, registry.resolve(expected), found)


def moved(name: str, expected: Version, found: Version) -> HeadMoved:
    """The head moved before any work was done."""
    error = HeadMoved(name, expected.ref, found.ref)
    error.hint = (
        f"run it again to stand on {found.ref}; "
        f"to keep to {expected.ref}: kswapctl branch {expected.ref} NEW, and name {expected.model}@NEW"
    )
    return error


def commit(
    registry: Registry,
    operation: Operation,
    files: Mapping[str, Path],
    fields: Mapping[str, Any],
    onto: str,
    progress: Progress,
) -> Version:
    """Commit finished work; where the head moved, onto a branch: ``onto``, else one of ours, and HeadMoved tells it."""
    try:
        return operation.commit(files, **fields)
    except HeadMoved as error:
        branch = onto or _free_name(registry, operation.parent.model)
        version = operation.commit(files, **fields, onto=branch)
        if onto:
            progress.note(f"{error.message}: {version.ref} is on the branch {version.model}@{branch}")
            return version
        error.hint = f"the work is kept as {version.ref}, on the branch {version.model}@{branch}"
        raise


def _free_name(registry: Registry, model: str) -> str:
    taken = {*registry.branches(model), *registry.tags(model)}
    return next(name for number in range(1, len(taken) + 2) if (name := f"aside-{number}") not in taken)
