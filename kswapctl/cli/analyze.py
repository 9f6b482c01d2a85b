"""The analyze command: figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kswapctl.cli import options, render
from kswapctl.errors import UsageError
from kswapctl.operations.home import open_home


def analyze(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL[@V]...", help="Versions whose stacks are looked at.")
    ] = None,
    data: options.EvalData = None,
    study: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead: a study's folder, for the trade-off of its methods.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which of the study's splits; else its first.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the figures go.")] = Path(
        "figures"
    ),
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what changed where, how accuracy went along, and answers before and after: PNG, SVG and JSON.

    Example: `kswapctl analyze signs`, `kswapctl analyze signs@main signs@fl`, `kswapctl analyze --study table1`
    """
    if bool(refs) == bool(study):
        raise UsageError("analyze takes versions, or --study DIR", "one of the two")
    if study:
        from kswapctl.operations.analyze import draw_study

        files = draw_study(study, split)
    else:
        with open_home(home, read_only=True) as registry, render.Live() as live:
            from kswapctl.operations.analyze import analyze as draw

            versions = [registry.resolve(ref) for ref in refs or []]
            files = draw(registry, versions, data or [], output, live)
    render.data([str(file) for file in files], render.table("", ["file"], [[file] for file in files]))


COMMANDS = {"analyze": analyze}
