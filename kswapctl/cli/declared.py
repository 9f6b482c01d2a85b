"""Commands that do what a file declares: apply a plan, run a study."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kswapctl.cli import change, options, render
from kswapctl.cli.options import command_line
from kswapctl.errors import NotFoundError
from kswapctl.operations.home import open_home
from kswapctl.spec import listed

if TYPE_CHECKING:
    from kswapctl.operations.apply import Line
    from kswapctl.operations.studies.schema import Study
    from kswapctl.operations.studies.table import Row


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
        head = registry.resolve(plan.model).ref
        before = outline(registry, plan.model, plan.start, changes)
        after = before if dry_run else apply_plan(registry, plan.model, head, before, changes, command_line(), live)
    if not after:  # another process of the same operations prints
        return
    states = [_state(old, new) for old, new in zip(before, after, strict=True)]
    shown = [_shown(line, state) for line, state in zip(after, states, strict=True)]
    results = [line.result for line in after if line.result]
    render.data(shown, _table(after, states), *([change.table(results)] if results else []))


def _state(before: Line, after: Line) -> str:
    if before.version:
        return "done before"
    return "done now" if after.version else "to do"


def _shown(line: Line, state: str) -> dict[str, object]:
    asked = line.change
    return {
        "kind": asked.kind,
        "classes": list(asked.classes),
        "method": asked.method,
        "source": asked.source,
        "state": state,
        "version": line.version,
        "images": line.images,
        "validation": line.result.outcome.validation if line.result else None,
        "met": line.result.outcome.met if line.result else None,
    }


def _table(lines: list[Line], states: list[str]) -> Table:
    rows = [
        (
            index,
            f"{line.change.kind} {listed(line.change.classes)}",
            line.change.method,
            *(line.images or ("-", "-")),
            state,
            line.version or "-",
        )
        for index, (line, state) in enumerate(zip(lines, states, strict=True))
    ]
    return render.table("", ["#", "operation", "method", "#images", "#rehearsed", "", "version"], rows)


def study(
    name: Annotated[
        str, typer.Argument(metavar="[STUDY]", help="A shipped study, or a .yaml file; none: list them.")
    ] = "",
    use: Annotated[
        list[str] | None, typer.Option("--use", metavar="NAME=PATH", help="Where what the study needs is (repeat).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Its folder; else ./NAME.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="Workers are jobs there: slurm, or local (submitit).")
    ] = "",
    seeds: Annotated[str, typer.Option(metavar="0,1", help="Instead of the study's own seeds.")] = "",
    only: Annotated[str, typer.Option(metavar="A,B", help="Only these contenders.")] = "",
    table: Annotated[bool, typer.Option("--table", help="Run nothing: sum up what is done.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run methods over class splits, orders and seeds, and sum them up in a table; stopped, it goes on where it was.

    Example: `kswapctl study gslora-table1 --use base=signs38.safetensors --use signs=signs43`
    """
    from kswapctl.operations.studies.schema import read_study, settled, shipped

    if not name:
        known = [read_study(each) for each in sorted(shipped())]
        rows = [(s.name, s.title, ", ".join(s.needs)) for s in known]
        render.data([s.model_dump() for s in known], render.table("", ["study", "what it asks", "needs"], rows))
        return
    from kswapctl.operations.studies.cells import seeds_done
    from kswapctl.operations.studies.narrow import narrowed
    from kswapctl.operations.studies.run import results_of, run_study
    from kswapctl.operations.studies.table import summarise, write_tables

    whole = read_study(name)
    chosen = narrowed(whole, options.names(seeds), options.names(only))
    given, folder = settled(chosen, options.pairs(use)), output or Path(chosen.name)
    with render.Live() as live:
        if cluster and not table:
            from kswapctl.operations.studies.cluster import run_jobs

            run_jobs(chosen, given, folder, workers, cluster, live)
        done = table or bool(cluster)
        results = results_of(chosen, given, folder) if done else run_study(chosen, given, folder, workers, live)
    if table and not results:
        raise NotFoundError(
            f"no cell of this study is done in {folder}",
            "run it, or give the same --use, and be of the same release, as then",
        )
    summary = summarise(chosen, results)
    # the files hold all that is done, whatever was asked for now
    whole = whole.model_copy(update={"seeds": tuple(dict.fromkeys((*whole.seeds, *seeds_done(folder))))})
    every = results if chosen == whole else results_of(whole, given, folder)
    files = write_tables(whole, summarise(whole, every), every, folder) if every else []
    render.data([asdict(row) for row in summary], *_study_tables(chosen, summary))
    render.say(f"cells: {len(results)}; {', '.join(map(str, files))}")


def _study_tables(study: Study, rows: list[Row]) -> list[Table]:
    from kswapctl.operations.studies.table import cells_as_text, for_readers, heads, seeds_as_text, shown_stage

    columns = ["method", "stage", *(f"#{head}" for head in heads(study)), "#seeds"]
    readable = for_readers(rows)
    splits = dict.fromkeys(r.split for r in readable)
    return [
        render.table(
            split,
            columns,
            [
                (r.contender, shown_stage(r.stage), *cells_as_text(study, r), seeds_as_text(r))
                for r in readable
                if r.split == split
            ],
        )
        for split in splits
    ]


COMMANDS = {"apply": apply, "study": study}
