"""The command that asks whether the forgotten is really gone."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.errors import UsageError, nearest
from kswapctl.operations.home import open_home
from kswapctl.spec import listed

if TYPE_CHECKING:
    from kswap_registry import Registry

    from kswapctl.operations.audit import Audit

TIERS = ("quick", "standard", "deep")
REFERENCES = {
    "R1": "a model trained without the classes",
    "R2": "the stack before the classes were learned",
    "R3": "classes the model never knew",
    "R4": "none: give --reference or --control",
}
VERDICTS = {
    "PASS": "the model does not say it, and no attack that could tell recovers it",
    "SUPPRESSED": "the model does not say it, but an attack recovers it",
    "FAIL": "the model still says it or says it again once its weights are rounded, or it lost what was to stay",
    "INCONCLUSIVE": "these images and references cannot tell",
}
READING = (
    "M1 and M7 are shares of images, M2 and M3 areas under a curve (0.5 is chance), M4 to M6 recovery indices: "
    "0 like the reference, 1 like the original. What stands in brackets is told and does not vote."
)
RESIDUE = {
    "SUPPRESSED": "the registry still holds what knew the classes: a rollback brings them back",
    "MERGED": "the registry no longer holds what knew the classes, but shipped files do",
    "PURGED": "the registry no longer holds what knew the classes",
}


def audit(
    ref: options.Ref,
    tier: Annotated[str, typer.Option(help="quick (outputs, prototypes), standard, or deep (fresh adapters).")] = (
        "standard"
    ),
    classes: Annotated[str, typer.Option(metavar="A,B", help="What should be gone; else the last forgotten.")] = "",
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model trained without the classes (.safetensors).")
    ] = None,
    control: Annotated[str, typer.Option(metavar="DIR", help="Images of 5 or more classes the model never knew.")] = "",
    data: options.EvalData = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="Also examine this exported file.")] = None,
    seed: options.Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write audit.json and audit.png here.")
    ] = None,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Attack a version and say how much of the forgotten can be had back. Exit code 0, 20 (failed), 21 (cannot tell).

    Example: `kswapctl audit signs --reference retrained.safetensors -o audit`
    """
    if tier not in TIERS:
        raise UsageError(f"no tier {tier!r}", nearest(tier, TIERS))
    with open_home(home) as registry, render.Live() as live:
        folder = _make_folder(registry, output, overwrite)
        from kswapctl.operations.audit import audit_version
        from kswapctl.operations.audit_material import Request

        request = Request(
            tier=tier,  # type: ignore[arg-type]  # checked above
            classes=options.names(classes),
            reference=reference,
            control=control,
            data=tuple(data or ()),
            onnx=onnx,
            seed=seed,
            skip_bad=skip_bad,
            device=device,
        )
        result = audit_version(registry, registry.resolve(ref), request, command_line(), live)
    if folder:
        _write(folder, result)
    render.data(result.report, *_tables(result))
    if folder:
        render.say(f"written: {folder / 'audit.json'}, {folder / 'audit.png'}")
    raise typer.Exit(result.verdict.exit_code)


def _tables(result: Audit) -> list[Table]:
    report = result.report
    rows = [
        (m.id, m.title, _number(m.value), _interval(m.low, m.high), m.level if m.votes else f"({m.level})", m.note)
        for m in result.measures
    ]
    kind = report["reference"]["kind"]
    title = f"{report['version']} without {listed(report['forgotten'])}; reference {kind}: {REFERENCES[kind]}"
    columns = ["", "measure", "#value", "#95%", "level", "note"]
    answer, reasons = result.verdict.answer, result.verdict.reasons
    facts = [("verdict", f"{answer}: {VERDICTS[answer]}")]
    facts += [("" if index else "because of", reason) for index, reason in enumerate(reasons)]
    facts += [("residue (M8)", f"{result.remains.level}: {RESIDUE[result.remains.level]}")]
    facts += [("to read it", READING), ("limits", report["limitations"])]
    return [render.table(title, columns, rows), render.table("", ["", ""], facts)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _make_folder(registry: Registry, output: Path | None, overwrite: bool) -> Path | None:
    if output is None:
        return None
    from kswapctl.export.files import made_folder, outside

    outside(registry.folder, output)
    if any((output / name).exists() for name in ("audit.json", "audit.png")) and not overwrite:
        raise UsageError(f"{output} holds an audit", "say --overwrite, or choose another folder")
    return made_folder(output)


def _write(folder: Path, result: Audit) -> None:
    from kswapctl.audit.figures import draw_audit

    (folder / "audit.json").write_text(json_module.dumps(result.report, indent=2, sort_keys=True) + "\n")
    title = f"{result.report['version']}: {result.verdict.answer} ({result.report['protocol']})"
    draw_audit(folder / "audit.png", title, result.measures, result.curves)


COMMANDS = {"audit": audit}
