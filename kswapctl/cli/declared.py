"""Commands that do what a file declares: apply a plan, run a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.operations.home import open_home

if TYPE_CHECKING:
    from kswapctl.operations.apply import Line


def apply(
    file: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="The plan: a model and its operations, in order.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Do the operations that a plan declares and that are not done yet; a second time nothing is left to do.

    Example: `kswapctl apply plan.yaml --dry-run`
    """
    with open_home(home, read_only=dry_run) as registry, render.Live() as live:
        from kswapctl.operations.apply import apply_plan, outline
        from kswapctl.operations.plan import read_plan

        plan, changes = read_plan(file)
        before = outline(registry, plan.model, plan.start, changes)
        after = before if dry_run else apply_plan(registry, plan.model, before, changes, command_line(), live)
    states = [_state(old, new) for old, new in zip(before, after, strict=True)]
    shown = [_shown(line, state) for line, state in zip(after, states, strict=True)]
    render.data(shown, _table(after, states))


def _state(before: Line, after: Line) -> str:
    if before.version:
        return "done before"
    return "done now" if after.version else "to do"


def _shown(line: Line, state: str) -> dict[str, object]:
    change = line.change
    return {
        "kind": change.kind,
        "classes": list(change.classes),
        "method": change.method,
        "source": change.source,
        "state": state,
        "version": line.version,
        "images": line.images,
    }


def _table(lines: list[Line], states: list[str]) -> Table:
    rows = [
        (
            index,
            f"{line.change.kind} {', '.join(line.change.classes)}",
            line.change.method,
            *(line.images or ("-", "-")),
            state,
            line.version or "-",
        )
        for index, (line, state) in enumerate(zip(lines, states, strict=True))
    ]
    return render.table("", ["#", "operation", "method", "#images", "#rehearsed", "", "version"], rows)


COMMANDS = {"apply": apply}
