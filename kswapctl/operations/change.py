"""Learn, forget, swap: one operation, one adapter, one version; nothing is registered unless all of it succeeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kswap_registry import Model, Operation, Registry, Version

from kswapctl.data.images import Images
from kswapctl.errors import DataError, UsageError
from kswapctl.methods import find_method
from kswapctl.models.lora import compose, save
from kswapctl.models.weights import Weights, fingerprint
from kswapctl.operations import aside
from kswapctl.operations.home import environment
from kswapctl.operations.material import Material, choose, foresee
from kswapctl.operations.surgery import operate
from kswapctl.operations.versions import Composed, knowledge_of, load_version
from kswapctl.progress import Progress, Silent
from kswapctl.spec import Change
from kswapctl.tasks import TASKS
from kswapctl.training.loop import Outcome
from kswapctl.training.team import gather_team, is_follower


@dataclass(frozen=True)
class Result:
    """A committed operation."""

    version: Version
    outcome: Outcome
    seconds: float
    audited: bool
    """Whether an audit can judge it."""


def apply(registry: Registry, name: str, change: Change, command: str, progress: Progress, onto: str = "") -> Result:
    """Do one learn or forget on the head of ``name`` (MODEL or MODEL@BRANCH); all of it is registered, or nothing.

    Where another moved the head meanwhile, nothing is put on the new head unasked: before the work that is a
    :class:`HeadMoved`; with ``onto`` the work goes on, and onto a new branch of that name. Work that was done when the
    head moved is kept on a branch in any case.
    """
    start = time.monotonic()
    method = find_method(change.method, change.kind).configure(change.preset, change.settings)
    branch = _branch(registry, name)
    parent = registry.resolve(name)
    if onto:
        aside.check_free_name(registry, parent.model, onto)
    composed = load_version(registry, parent)
    material = choose(composed.knowledge, change, TASKS[composed.spec.task].marks)
    change = material.change
    registry.require_space(_bytes_needed(composed.weights, registry.model(parent.model), method.rank))
    with registry.operation(
        parent.model,
        kind=change.kind,
        method=change.method,
        spec=change.to_json(),
        command=command,
        environment=environment(),
        branch=branch,
    ) as operation:
        if operation.parent.number != parent.number:  # the head moved while this waited for its turn
            if not onto:
                raise aside.moved(name, parent, operation.parent)
            operation.stand_on(parent.number)
        outcome, images = operate(composed, material, progress)
        fields = _fields(registry, operation, composed, material, outcome, images)
        files = save(outcome.adapter, operation.folder, operation.parent.model)
        version = aside.commit(registry, operation, files, fields, onto, progress)
    gather_team(change.device == "cpu").wait()
    return Result(version, outcome, time.monotonic() - start, TASKS[composed.spec.task].audited)


def follow(registry: Registry, name: str, change: Change) -> None:
    """Train along with the process that does :func:`apply`, and write nothing."""
    composed = load_version(registry, registry.resolve(name))
    operate(composed, choose(composed.knowledge, change, TASKS[composed.spec.task].marks), Silent())
    gather_team(change.device == "cpu").wait()


def _bytes_needed(weights: Weights, model: Model, rank: int) -> int:
    """Most that an operation writes: its adapter in scratch and in the store, and a megabyte of rows and journal."""
    shapes = [weights[f"{layer}.weight"].shape for block in model.spec["blocks"] for layer in block["layers"]]
    return 2**20 + 2 * 4 * rank * sum(shape[0] + shape[1:].numel() for shape in shapes)


def apply_all(
    registry: Registry, name: str, changes: Sequence[Change], command: str, progress: Progress, onto: str = ""
) -> list[Result]:
    """Do ``changes`` one after the other, one adapter each; all are checked before the first begins.

    A kind that comes twice does its change again: forget, learn, forget repairs what the learning undid. Of several
    processes that torchrun started, only the first writes, and has results.
    """
    for change in changes:
        find_method(change.method, change.kind).configure(change.preset, change.settings)
    _check_apart(changes)
    head = registry.resolve(name)
    planned = _plan(registry.model(head.model), head, changes) if len(changes) > 1 else changes
    results: list[Result] = []
    kept: list[str] = []
    with naming(kept):
        for change in planned:
            if is_follower():
                follow(registry, name, change)
            else:
                if len(planned) > 1 and not onto:
                    aside.check_head(registry, name, kept[-1] if kept else head.ref)
                results.append(apply(registry, name, change, command, progress, onto))
                kept.append(results[-1].version.ref)
    return results


@contextmanager
def naming(kept: Sequence[str]) -> Iterator[None]:
    """What ends the work within, whatever it is, names the versions that were made before it: they stay."""
    try:
        yield
    except BaseException as error:
        if kept:
            error.add_note(f"(done before that, and kept: {', '.join(kept)})")
        raise


def _plan(model: Model, head: Version, changes: Sequence[Change]) -> list[Change]:
    """``changes`` as they will be asked for, one after the other; what cannot be done is raised now."""
    knowledge = knowledge_of(model, head)
    planned: list[Change] = []
    classes: dict[str, tuple[str, ...]] = {}
    for change in changes:
        repeated = change.kind in classes
        planned.append(dataclasses.replace(change, again=True, classes=classes[change.kind]) if repeated else change)
        material, knowledge = foresee(model, knowledge, planned[-1])
        classes[change.kind] = material.change.classes
    _check_apart([dataclasses.replace(change, classes=classes[change.kind]) for change in planned])
    return planned


def _branch(registry: Registry, name: str) -> str:
    """The branch that ``MODEL`` or ``MODEL@BRANCH`` names; a version that is no branch's head cannot be changed."""
    model, at, branch = name.partition("@")
    if not at or branch == "head":
        return "main"
    if branch not in registry.branches(model):
        version = registry.resolve(name)
        raise UsageError(
            f"{version.ref} is a version, not a branch",
            f"move the head there: kswapctl rollback {model} --to {branch}; or branch: kswapctl branch {name} NEW",
        )
    return branch


def _check_apart(changes: Sequence[Change]) -> None:
    """No class may both come and go."""
    both = {c for a in changes for c in a.classes for b in changes if b.kind != a.kind and c in b.classes}
    if both:
        raise DataError(f"class {min(both)!r} is both to be learned and to be forgotten", "name it in one of the two")


def _fields(
    registry: Registry,
    operation: Operation,
    composed: Composed,
    material: Material,
    outcome: Outcome,
    images: Mapping[str, Images],
) -> dict[str, Any]:
    """What the version is recorded with, besides its files."""
    change = material.change
    depth = len(registry.stack(operation.parent)) + 1
    state = composed.knowledge.after(change, depth)
    record = {
        "classes": list(change.classes),
        "blocks": outcome.choice,
        "changed blocks": list(outcome.changed),
        "steps": outcome.steps,
        "met": outcome.met,
        "lost": outcome.lost,
        "values": outcome.adapter.values,
        "history": list(outcome.history),
        "data": {
            part: {
                "images": len(i),
                "commitment": registry.commitment(i.fingerprint().encode()),
                "skipped": len(i.bad),
            }
            for part, i in images.items()
        },
    }
    return {
        "state": state.to_json() | {"record": record},
        "adapter": outcome.adapter.fingerprint,
        "weights": fingerprint(compose(composed.weights, [outcome.adapter])),
        "metrics": outcome.validation,
    }
