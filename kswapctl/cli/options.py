"""Options that several commands share, each defined once."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kswapctl.cli import render
from kswapctl.spec import DEFAULT_METHOD, MARKED_LEAST, MOST_SEED


def _json(asked: bool) -> bool:
    if asked:
        render.use_json()
    return asked


def _quiet(asked: bool) -> bool:
    if asked:
        render.use_quiet()
    return asked


def named_classes(text: str | None) -> str | None:
    """``text``, if it is given and then names a class: an empty variable of a shell asks for nothing."""
    if text is not None and not names(text):
        raise typer.BadParameter(f"{text!r} names no class")
    return text


Home = Annotated[
    Path | None,
    typer.Option("--registry", metavar="DIR", envvar="KSWAP_HOME", help="The registry; else the nearest .kswap."),
]
Json = Annotated[bool, typer.Option("--json", callback=_json, is_eager=True, help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_quiet, is_eager=True, help="No progress on stderr.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model's name.")]
Head = Annotated[str, typer.Argument(metavar="MODEL[@BRANCH]", help="A registered model's name; a branch of it.")]
Ref = Annotated[str, typer.Argument(metavar="MODEL[@V]", help="A version: NAME, NAME@3, NAME@-1, NAME@base, NAME@TAG.")]
Data = Annotated[
    str,
    typer.Option("--data", metavar="DIR", help="Image folder, .csv or .jsonl manifest, or hf:NAME."),
]
EvalData = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="DIR", help="Images to use (may be repeated); else what the stack was trained with."
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="A,B",
        help="Class names, separated by commas; one that holds a comma in double quotes.",
        callback=named_classes,
    ),
]
RetainData = Annotated[
    str,
    typer.Option(
        "--retain-data", metavar="DIR", help="Images of what must stay; else --data and what was used before."
    ),
]
RetainShare = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of each known class's training images shown again: one at least, "
        f"or {MARKED_LEAST} where images have boxes or masks.",
    ),
]
RetainPerClass = Annotated[int | None, typer.Option(min=1, help="Instead: this many images of each known class.")]
TargetForget = Annotated[float, typer.Option(min=0.0, max=1.0, help="Highest accuracy left on what is forgotten.")]
TargetLearn = Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest accuracy on what is learned.")]
MaxRetainDrop = Annotated[float, typer.Option(min=0.0, max=1.0, help="Largest accuracy lost on what must stay.")]
MethodName = Annotated[
    str, typer.Option("--method", help="A name from `kswapctl methods`.", show_default=DEFAULT_METHOD)
]
Depth = Annotated[
    str,
    typer.Option(
        metavar="shallow|deep",
        help="How far to forget: what the model says (gs-lora), or its features too (erase). In place of --method.",
    ),
]
Preset = Annotated[
    str, typer.Option(help="A set of values: default, or another that `kswapctl methods NAME` lists for the method.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter (may be repeated).")
]
Blocks = Annotated[str, typer.Option(help="Blocks to adapt: all, auto, last:N; else the method's choice.")]
CacheGb = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Room for activations, in GiB. Without room they are computed again; "
        "but a step of a detector or segmenter keeps all of its own.",
    ),
]
CacheDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep it in files there, for the next operation; else in memory.")
]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Decides split, rehearsal, initial weights and order.")]
Again = Annotated[bool, typer.Option("--again", help="Also classes that are known, or forgotten, already.")]
Onto = Annotated[
    str, typer.Option("--onto", metavar="NAME", help="If the head moves meanwhile, go onto a new branch of this name.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images, and record them.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="Of training steps: auto, fp32 or bf16.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def names(text: str) -> tuple[str, ...]:
    """``A,B`` as names; one that holds a comma stands in double quotes, as in a CSV file."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return tuple(name.strip() for row in rows for name in row if name.strip())


def pairs(texts: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dict; another form is a usage error."""
    parted = [text.partition("=") for text in texts or []]
    for name, sign, value in parted:
        if not (name and sign and value):
            raise typer.BadParameter(f"{name!r} is not NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in parted}


def command_line() -> str:
    """The command as a shell takes it, for the record."""
    return shlex.join(["kswapctl", *sys.argv[1:]])
