"""The command that measures: eval. It needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kswapctl.cli import options, render
from kswapctl.cli.look import classes_of
from kswapctl.errors import UsageError
from kswapctl.operations.home import open_home
from kswapctl.spec import named

if TYPE_CHECKING:
    from kswapctl.evaluation.scores import Evaluation


def evaluate(
    ref: options.Ref,
    data: options.EvalData = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="A row for each class, and what else it is taken for.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="A row for every version of the stack.")] = False,
    home: options.Home = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what a version retained, learned and forgot on the test part, against its base.

    Example: `kswapctl eval signs@2 --per-class`
    """
    if history:
        if per_class:
            raise UsageError("--history has no rows by class", "leave out --per-class, or measure one version")
        _history(ref, data or [], home, skip_bad, device)
        return
    with open_home(home, read_only=True) as registry, render.Live() as live:
        from kswapctl.operations.look import evaluate_version

        version = registry.resolve(ref)
        result = evaluate_version(registry, version, data or [], skip_bad, device, live)
    tables = evaluation_tables(version.ref, result)
    if per_class:
        each = [
            (c.name, c.images, render.percent(c.accuracy), render.percent(c.base), _named(c.taken_for))
            for c in result.per_class
        ]
        tables.append(render.table("", ["class", "#images", f"#{result.metric} %", "#base %", "else taken for"], each))
    render.data({"version": version.ref} | asdict(result), *tables)
    if result.unseen:
        render.say(f"not measured, as no test image shows them: {named(result.unseen)}")


def _history(ref: str, data: list[str], home: options.Home, skip_bad: bool, device: str) -> None:
    with open_home(home, read_only=True) as registry, render.Live() as live:
        from kswapctl.operations.trace import trace

        steps = trace(registry, registry.resolve(ref), data, skip_bad, device, live)
    names = ("retain", "learned", "forgotten", "forgotten earlier")
    rows = [
        (
            step.version.ref,
            f"{step.version.kind} {classes_of(step.version)}" if step.version.number else "",
            *(render.percent(score.accuracy) if (score := step.scores.set(name)) else "" for name in names),
        )
        for step in steps
    ]
    columns = ["version", "change", *(f"#{name} %" for name in names)]
    table = render.table(f"{steps[0].scores.metric} on test, each version on the sets it knows", columns, rows)
    render.data([{"version": step.version.ref} | asdict(step.scores) for step in steps], table)


def evaluation_tables(ref: str, result: Evaluation) -> list[Table]:
    """Scores by set, and what the forgotten are now taken for."""
    rows = [
        (
            s.name,
            s.classes,
            s.images,
            render.percent(s.accuracy),
            render.percent(s.base),
            render.points(s.accuracy - s.base),
            *(render.percent(value) for pair in s.more.values() for value in pair),
        )
        for s in result.sets
    ]
    more = [name for metric in result.sets[0].more for name in (f"#{metric} %", "#base %")] if result.sets else []
    title = f"{ref} on test" + ("" if result.h_mean is None else f", H-mean {render.percent(result.h_mean)}")
    columns = ["set", "#classes", "#images", f"#{result.metric} %", "#base %", "#change", *more]
    tables = [render.table(title, columns, rows)]
    if result.taken_for:
        taken = [(c, _named(to)) for c, to in result.taken_for.items()]
        tables.append(render.table("", ["forgotten", "is now taken for"], taken))
    return tables


def _named(shares: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


COMMANDS = {"eval": evaluate}
