"""The command that removes for good what knew a forgotten class."""

from __future__ import annotations

from typing import Annotated

import typer

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.operations.home import open_home
from kswapctl.spec import listed


def purge(
    model: options.ModelName,
    confirm: Annotated[
        str, typer.Option(metavar="MODEL", help="Remove it for good: repeat the model's name. Else it only tells.")
    ] = "",
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Remove what knew the forgotten classes: a model's files, once what its branches became is a model of its own.

    Its history stays. Before: merge the model, and add the merged file under another name.

    Example: `kswapctl purge signs`, then `kswapctl purge signs --confirm signs`
    """
    with open_home(home, read_only=not confirm) as registry:
        from kswapctl.operations.purge import plan_purge, purge_model

        found = purge_model(registry, model, confirm, command_line()) if confirm else plan_purge(registry, model)
    done = found.purge
    verb = "removed" if done.removed else f"would be removed for good: --confirm {model}"
    files = [(blob.digest[:12], render.size(blob.size)) for blob in done.blobs]
    facts = [("files", f"{len(files)}, {render.size(done.size)}, {verb}"), ("forgotten", listed(found.forgotten))]
    facts += [(f"{model}@{branch} is now", other) for branch, other in done.replaced.items()]
    facts += [("left-over files", str(len(done.copies) + len(done.remains)))]
    facts += [("stays", f"{digest[:12]}: {ref} needs it") for digest, ref in done.kept.items()]
    facts += [("elsewhere", what) for what in found.elsewhere]
    facts += [("not seen", "backups of this registry, bundles and pushed copies: remove them where they are")]
    render.data(
        {
            "model": model,
            "removed": done.removed,
            "files": {blob.digest: blob.size for blob in done.blobs},
            "left_over": len(done.copies) + len(done.remains),
            "kept": done.kept,
            "replaced": done.replaced,
            "forgotten": found.forgotten,
            "elsewhere": found.elsewhere,
        },
        render.table("", ["file", "#size"], files),
        render.table("", ["", ""], facts),
    )


COMMANDS = {"purge": purge}
