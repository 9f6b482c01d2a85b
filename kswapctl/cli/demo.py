"""The demo command: the whole story in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kswapctl.cli import change, evaluate, options, render
from kswapctl.cli.options import command_line
from kswapctl.operations.home import create_home


def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where images, ONNX file and picture go.")] = Path(
        "kswap-demo"
    ),
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn two digits, forget two, measure, roll back and forward, export: on real data, in a minute.

    Example: `kswapctl demo`
    """
    render.say("A small network knows the digits zero to seven. It learns eight and nine, then forgets three and five.")
    with create_home(home) as registry, render.Live() as live:
        from kswapctl.operations.demo import tell

        story = tell(registry, folder, command_line(), live)
    moves = [("rolled back", story.back.ref), ("rolled forward again", story.forward.ref)]
    checked = f"same top-1 as the model on {story.parity.agreement:.0%} of {story.parity.images} test images"
    files = [(story.onnx, f"ONNX: {checked}"), (story.picture, "predictions before and after")]
    tables = [
        change.table([story.learned, story.forgot]),
        *evaluate.evaluation_tables(story.forward.ref, story.evaluation),
        render.table("", ["head", "is now"], moves),
        render.table("", ["file", "what it is"], files),
    ]
    render.data(
        {
            "evaluation": story.evaluation,
            "onnx": story.onnx,
            "picture": story.picture,
            "parity": story.parity,
        },
        *tables,
    )
    render.say(
        "Next: kswapctl list, kswapctl log digits, kswapctl diff digits@base digits, kswapctl rollback digits --to base"
    )


COMMANDS = {"demo": demo}
