"""A plan: a declared sequence of operations on one model, in a file that can be reviewed, kept and applied again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from kswapctl.data.sources import open_source
from kswapctl.errors import UsageError, told_at
from kswapctl.methods import find_method
from kswapctl.operations.documents import Document, read_document
from kswapctl.spec import DEFAULT_METHOD, MOST_SEED, Change, Depth, Kind, Rehearsal, Targets, method_at

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _plain(value: object) -> object:
    if not isinstance(value, str | bool | int | float):
        raise ValueError("a hyper-parameter is text, a number, true or false")
    return value


Setting = Annotated[str | bool | int | float, PlainValidator(_plain)]


REHEARSED = {"retain_share", "retain_per_class"}
"""Two ways to say how much is rehearsed."""


class Options(Document):
    """What an operation may be told; a plan's ``defaults`` hold for every operation that does not say otherwise."""

    data: str = ""
    """Image folder, manifest, or hf:NAME; relative to the plan's folder."""
    retain_data: str = ""
    """Where the images of what must stay are."""
    method: str = DEFAULT_METHOD
    """A name in ``kswapctl methods``."""
    depth: Depth | None = None
    """How far forgetting goes, in place of a method."""
    preset: str = "default"
    """The method's set of values."""
    set: dict[str, Setting] = Field(default_factory=dict)
    """Hyper-parameters that differ from the preset."""
    blocks: str = ""
    """Which blocks to adapt."""
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    retain_share: Share = Rehearsal.share
    retain_per_class: Annotated[int, Field(ge=1)] | None = None
    target_forget: Share = Targets.forget
    target_learn: Share = Targets.learn
    max_retain_drop: Share = Targets.retain_drop
    skip_bad: bool = False
    device: str = "auto"
    precision: str = "auto"


class Learn(Options):
    """A learn operation; without classes, every class of the data that is not known."""

    op: Literal["learn"]
    classes: tuple[str, ...] = ()
    again: bool = False


class Forget(Options):
    """A forget operation."""

    op: Literal["forget"]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    again: bool = False


Step = Annotated[Learn | Forget, Field(discriminator="op")]


class Plan(Document):
    """The whole file."""

    version: Literal[1]
    """Of this format."""
    model: str
    """MODEL or MODEL@BRANCH."""
    start: str = "base"
    """The version that the first operation is applied to."""
    defaults: Options = Options()
    """For every operation."""
    operations: Annotated[tuple[Step, ...], Field(min_length=1)]


def read_plan(file: Path) -> tuple[Plan, list[Change]]:
    """The plan in ``file`` and its operations as changes; methods, presets and settings are checked."""
    plan = read_document(file, Plan)
    changes = []
    for index, step in enumerate(plan.operations):
        with told_at(f"{file.name}: operations[{index}]"):
            changes.append(as_change(step, plan.defaults, file.parent))
    return plan, changes


def as_change(step: Learn | Forget, defaults: Options, folder: Path) -> Change:
    """The request that a step and the defaults make; data are found beside the plan."""
    usual, own = defaults.model_dump(exclude_unset=True), step.model_dump(exclude_unset=True)
    if own.keys() & REHEARSED:  # of these two the step's own goes first, whichever the defaults have
        usual = {key: value for key, value in usual.items() if key not in REHEARSED}
    given = usual | own
    if given.keys() >= REHEARSED:
        raise UsageError("both retain_share and retain_per_class are said", "leave one of them out")
    given["set"] = {**defaults.set, **step.set}
    values = Options.model_validate({k: v for k, v in given.items() if k in Options.model_fields})
    settings = {name: _as_text(value) for name, value in values.set.items()}
    kind: Kind = step.op
    method = _method(step, defaults)
    find_method(method, kind).configure(values.preset, settings)
    return Change(
        kind=kind,
        classes=tuple(dict.fromkeys(step.classes)),
        source=_place(values.data, folder),
        retain_source=_place(values.retain_data, folder),
        method=method,
        preset=values.preset,
        settings=settings,
        targets=Targets(values.target_forget, values.max_retain_drop, values.target_learn),
        rehearsal=Rehearsal(values.retain_share, values.retain_per_class),
        blocks=values.blocks,
        seed=values.seed,
        again=step.again,
        skip_bad=values.skip_bad,
        device=values.device,
        precision=values.precision,
    )


def _method(step: Learn | Forget, defaults: Options) -> str:
    """Of a method and a depth the operation's own count before the defaults'; a depth is of forgetting only."""
    if step.op == "learn" and step.depth:
        raise UsageError("a learn operation has no depth", "give it to the forget operation, or to the defaults")
    for said in (step, defaults):
        depth = said.depth if step.op == "forget" else None
        if depth or "method" in said.model_fields_set:
            return method_at(depth or "", said.method if "method" in said.model_fields_set else "")
    return DEFAULT_METHOD


def _as_text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _place(data: str, folder: Path) -> str:
    """``data`` as the registry records it; empty stays empty."""
    if not data:
        return ""
    if data.startswith("hf:"):
        return data
    path = Path(data).expanduser()
    beside = path if path.is_absolute() else folder / path
    return open_source(str(beside)).name


__all__ = ["Forget", "Learn", "Options", "Plan", "as_change", "read_plan"]
