"""Apply a plan: do what is not done yet, in order; a second time there is nothing left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kswap_registry import Registry, Version

from kswapctl.data.sets import count
from kswapctl.errors import UsageError, told_at
from kswapctl.operations import aside
from kswapctl.operations.change import Result, apply, follow, naming
from kswapctl.operations.material import foresee
from kswapctl.operations.versions import knowledge_of
from kswapctl.progress import Progress
from kswapctl.spec import Change
from kswapctl.training.team import is_follower


@dataclass(frozen=True)
class Line:
    """One operation of a plan: done already, or still to do."""

    change: Change
    version: str
    """The version that did it; empty where it is still to do."""
    images: tuple[int, int] | None
    """Training images of what changes and of what is rehearsed; None where it is done already."""
    result: Result | None = None
    """How it went, where it was done just now."""


def outline(registry: Registry, model: str, start: str, changes: Sequence[Change]) -> list[Line]:
    """Which of ``changes`` the head's stack holds already, and with what the others would be done; nothing is done.

    A stack that begins otherwise than the plan is a :class:`UsageError`: a plan never undoes what others did.
    """
    head = registry.resolve(model)
    first = registry.resolve(f"{head.model}@{start}")
    above = _since(registry, head, first)
    for index, (version, change) in enumerate(zip(above, changes, strict=False)):
        if different := _difference(version, change):
            raise UsageError(
                f"{version.ref} is not operation {index} of the plan: {different}",
                f"{_way_back(model, version.parent or 'base')}, or a branch: model: {head.model}@BRANCH in the plan",
            )
    if len(above) > len(changes):
        raise UsageError(
            f"{head.ref} has {len(above)} operations since {first.ref}, the plan only {len(changes)}",
            f"{_way_back(model, above[len(changes) - 1].number)}, or add them to the plan",
        )
    lines = [Line(change, version.ref, None) for version, change in zip(above, changes, strict=False)]
    knowledge = knowledge_of(registry.model(head.model), head)
    for index in range(len(above), len(changes)):
        with told_at(f"operations[{index}]"):
            material, knowledge = foresee(registry.model(head.model), knowledge, changes[index])
        lines.append(Line(material.change, "", (count(material.changed.train), count(material.retained.train))))
    return lines


def apply_plan(
    registry: Registry,
    model: str,
    head: str,
    lines: Sequence[Line],
    changes: Sequence[Change],
    command: str,
    progress: Progress,
) -> list[Line]:
    """Do the operations that are still to do on ``head``, where ``lines`` were outlined; each is registered before
    the next begins. Of several processes that torchrun started, only the first writes, and has lines.
    """
    if is_follower():
        for line, change in zip(lines, changes, strict=True):
            if not line.version:
                follow(registry, model, change)
        return []
    done: list[Line] = []
    made: list[str] = []
    with naming(made):
        for line, change in zip(lines, changes, strict=True):
            if line.version:
                done.append(line)
                continue
            aside.check_head(registry, model, done[-1].version if done else head)
            result = apply(registry, model, change, command, progress)
            made.append(result.version.ref)
            done.append(replace(line, version=result.version.ref, result=result))
    return done


def _since(registry: Registry, head: Version, first: Version) -> list[Version]:
    """The versions of the head's stack above ``first``, which must be one of them."""
    stack = registry.stack(head)
    if not first.number:
        return stack
    numbers = [v.number for v in stack]
    if first.number not in numbers:
        raise UsageError(f"{first.ref}, where the plan starts, is not below {head.ref}", "correct start in the plan")
    return stack[numbers.index(first.number) + 1 :]


def _way_back(model: str, number: int | str) -> str:
    """The command that moves the head of MODEL or MODEL@BRANCH."""
    name, _, branch = model.removesuffix("@head").partition("@")
    return f"kswapctl branch {name} {branch} --to {number}" if branch else f"kswapctl rollback {name} --to {number}"


def _difference(version: Version, change: Change) -> str:
    """What the plan asks for that the version was not made with; empty where it is the same."""
    asked = change.to_json()
    for name, wanted in asked.items():
        found = version.spec.get(name)
        left_open = name in {"classes", "source"} and not wanted
        if left_open or name in {"device", "again", "skip_bad", "cache_gb", "cache_dir"}:
            continue
        if _plain(found) != _plain(wanted):
            return f"{name}: {_plain(found)!r}, in the plan {_plain(wanted)!r}"
    return ""


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
