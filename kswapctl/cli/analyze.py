"""Commands that draw: analyze and show-predictions."""

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
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where the figures go.",
            show_default="figures, or the study's folder",
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what changed where, how accuracy went along, and answers before and after: PNG, SVG and JSON.

    Example: `kswapctl analyze signs`, `kswapctl analyze signs@main signs@fl`, `kswapctl analyze --study table1`
    """
    if bool(refs) == bool(study):
        raise UsageError("analyze takes versions, or --study DIR", "one of the two")
    if study and (data or skip_bad):
        raise UsageError("a study's figures are drawn from its results", "leave --data and --skip-bad away")
    if split and not study:
        raise UsageError("--split is of a study", "name it: --study DIR")
    if study:
        from kswapctl.operations.analyze import draw_study

        files = draw_study(study, split, output or study, overwrite)
    else:
        with open_home(home, read_only=True) as registry, render.Live() as live:
            from kswapctl.operations.analyze import analyze as draw

            versions = [registry.resolve(ref) for ref in refs or []]
            files = draw(registry, versions, data or [], output or Path("figures"), live, skip_bad, overwrite)
    render.data([str(file) for file in files], render.table("", ["file"], [[file] for file in files]))


def show_predictions(
    ref: options.Ref,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .png or .svg to write.")],
    before: Annotated[str, typer.Option(metavar="V", help="The version to hold it against, as in MODEL@V.")] = "base",
    classes: Annotated[
        str, typer.Option("--classes", metavar="A,B", help="Classes to show; else a few of each set.")
    ] = "",
    images: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 2,
    data: options.EvalData = None,
    skip_bad: options.SkipBad = False,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw test images as they are marked, and what two versions answer: labels, boxes or masks, side by side.

    Example: `kswapctl show-predictions cells -o cells.png`, `kswapctl show-predictions cells@2 --before 1 -o 2.png`
    """
    with open_home(home, read_only=True) as registry, render.Live() as live:
        from kswapctl.operations.pictures import Request
        from kswapctl.operations.pictures import show_predictions as draw

        version = registry.resolve(ref)
        earlier = registry.resolve(f"{version.model}@{before}")
        request = Request(output, options.names(classes), images, tuple(data or ()), overwrite, skip_bad)
        drawing = draw(registry, earlier, version, request, live)
    rows = [
        (key, f"{pick.name} ({pick.title})", *(_first(column.phrases(line)) for column in drawing.columns))
        for line, (key, pick) in enumerate(zip(drawing.keys, drawing.picks, strict=True))
    ]
    shown = {"file": output, "before": earlier.ref, "after": version.ref, "images": drawing.said()}
    columns = ["image", "shows", "marked", f"before, {earlier.ref}", f"after, {version.ref}"]
    render.data(shown, render.table(str(output), columns, rows))


def _first(phrases: list[str]) -> str:
    """The first few."""
    return ", ".join(phrases[:4]) + (" ..." if len(phrases) > 4 else "") or "-"


COMMANDS = {"analyze": analyze, "show-predictions": show_predictions}
