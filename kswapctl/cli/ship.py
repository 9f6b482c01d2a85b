"""Commands that ship a version: merge, export, unpack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.operations.home import open_home


def merge(
    ref: options.Ref,
    output: options.Output,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Write a version as plain weights that `add` takes, and of a classifier timm too (`checkpoint_path=`).

    Example: `kswapctl merge signs -o signs.safetensors`
    """
    with open_home(home) as registry:
        from kswapctl.operations.ship import merge as write

        version = registry.resolve(ref)
        write(registry, version, output, overwrite, command_line())
    size = output.stat().st_size
    rows = [(output, version.ref, render.size(size))]
    render.data(
        {"file": output, "version": version.ref, "bytes": size}, render.table("", ["file", "version", "#size"], rows)
    )


def export(
    ref: options.Ref,
    output: options.Output,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits.")] = False,
    opset: Annotated[int, typer.Option(min=18, max=25, help="ONNX operator set.")] = 18,
    data: options.EvalData = None,
    every: Annotated[bool, typer.Option("--every", help="Check on every test image, not a sample.")] = False,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a version as ONNX, kept only if onnxruntime agrees with the model on real images.

    Example: `kswapctl export signs -o signs.onnx --int8`
    """
    if fp16 and int8:
        raise typer.BadParameter("--fp16 and --int8 exclude each other")
    precision: Literal["fp32", "fp16", "int8"] = "fp16" if fp16 else "int8" if int8 else "fp32"
    with open_home(home) as registry, render.Live() as live:
        from kswapctl.export.onnx import beside
        from kswapctl.operations.ship import Export
        from kswapctl.operations.ship import export as write

        version = registry.resolve(ref)
        request = Export(output, precision, opset, tuple(data or ()), every, overwrite)
        parity = write(registry, version, request, command_line(), live)
        size = sum(file.stat().st_size for file in (output, beside(output)) if file.exists())
    shown = {
        "file": output,
        "version": version.ref,
        "precision": precision,
        "bytes": size,
        "images_checked": parity.images,
        "largest_logit_difference": parity.largest,
        "top1_agreement": parity.agreement,
    }
    rows = [(output, version.ref, precision, render.size(size), parity.images, f"{parity.largest:.1e}",
             render.percent(parity.agreement))]  # fmt: skip
    columns = [
        "file",
        "version",
        "precision",
        "#size",
        "#images checked",
        "#largest logit difference",
        "#same top-1 %",
    ]
    render.data(shown, render.table("", columns, rows))


def unpack(
    ref: options.Ref,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Write one version's adapter as a folder that plain PEFT loads.

    Example: `kswapctl unpack signs@2 -o adapter`
    """
    with open_home(home, read_only=True) as registry:
        from kswapctl.operations.ship import unpack as write

        version = registry.resolve(ref)
        write(registry, version, output, overwrite)
    files = sorted(p.name for p in output.iterdir())
    render.data(
        {"folder": output, "files": files},
        render.table("", ["folder", "files"], [(output, ", ".join(files))]),
    )


COMMANDS = {"merge": merge, "export": export, "unpack": unpack}
