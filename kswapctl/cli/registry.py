"""Commands on the registry itself: init, add, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kswapctl.cli import render
from kswapctl.cli.options import Home, Json, Quiet, command_line, names, pairs
from kswapctl.errors import DataError, UsageError
from kswapctl.operations.home import create_home, open_home


def init(home: Home = None, json: Json = False) -> None:
    """Make a registry: a folder `.kswap` here, or the one named.

    Example: `kswapctl init`
    """
    with create_home(home) as registry:
        render.data({"registry": str(registry.folder)}, render.table("", ["registry"], [[registry.folder]]))


def add(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name for it, new in this registry.")],
    source: Annotated[
        str,
        typer.Argument(
            help="A timm name, hf-hub:ORG/NAME, a .safetensors or .pth file; a transformers folder or ORG/NAME."
        ),
    ],
    home: Home = None,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Images of its classes: names them, and is used from then on.")
    ] = "",
    architecture: Annotated[str, typer.Option(help="timm's model name, where a file does not say it.")] = "",
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An argument of timm.create_model (may be repeated)."),
    ] = None,
    classes: Annotated[
        str, typer.Option(metavar="A,B", help="Class names in the order of the classifier's rows.")
    ] = "",
    classes_file: Annotated[Path | None, typer.Option(help="The same, one a line.")] = None,
    mean: Annotated[str, typer.Option(help="Per channel, e.g. 0.5,0.5,0.5.")] = "",
    std: Annotated[str, typer.Option(help="Per channel.")] = "",
    pretrained: Annotated[bool, typer.Option(help="Load a timm model's pretrained weights, or random ones.")] = True,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open a .pth file, tensors only; no code is run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register a pretrained checkpoint under a name.

    Example: `kswapctl add signs signs38.safetensors --data signs43`
    """
    with open_home(home, on_wait=render.waiting) as registry:
        from kswapctl.models.checkpoint import Description
        from kswapctl.operations.models import add_model

        preprocessing = {k: v.split(",") for k, v in {"mean": mean, "std": std}.items() if v}
        if classes and classes_file:
            raise UsageError("--classes and --classes-file both name the rows", "one of the two")
        listed = names(classes) or _lines(classes_file)
        description = Description(
            architecture=architecture,
            arguments={k: _value(v) for k, v in pairs(model_arg).items()},
            classes=tuple(c for c in listed if c),
            preprocessing=preprocessing,
            pretrained=pretrained,
            allow_pickle=allow_pickle,
        )
        model = add_model(registry, name, source, description, data, command_line())
    shown = {
        "model": model.name,
        "architecture": model.spec["architecture"],
        "classes": len(model.classes),
        "blocks": len(model.spec["blocks"]),
        "parameters": model.spec["parameters"],
        "fingerprint": model.fingerprint,
    }
    render.data(shown, render.table("", ["", ""], shown.items()))


def models(home: Home = None, json: Json = False) -> None:
    """List the registered models.

    Example: `kswapctl models`
    """
    with open_home(home, read_only=True) as registry:
        found = registry.models()
        rows = [
            (
                m.name,
                m.spec["architecture"],
                len(m.classes),
                f"{m.name}@{m.head or 'base'}",
                m.source,
                m.created,
            )
            for m in found
        ]
    shown = [{"name": m.name, "source": m.source, "head": m.head, "classes": m.classes} for m in found]
    render.data(shown, render.table("", ["model", "architecture", "#classes", "head", "source", "added"], rows))


def _lines(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    from kswapctl.export.files import require_file

    require_file(file, "--classes-file names a text file, one class a line")
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text", "save it as UTF-8") from error


def _value(text: str) -> Any:
    """A number, true or false, or the text itself."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


COMMANDS = {"init": init, "add": add, "models": models}
