"""Commands that share a version: bundle, import, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.operations.home import open_home

if TYPE_CHECKING:
    from kswapctl.operations.receive import Received

WithBase = Annotated[
    bool, typer.Option("--with-base", help="Also the base's tensors; else who gets it needs the base.")
]
OnBranch = Annotated[str, typer.Option("--branch", metavar="NAME", help="Put it on this branch, not the main line.")]


def bundle(
    ref: options.Ref,
    output: options.Output,
    with_base: WithBase = False,
    only: Annotated[bool, typer.Option("--only", help="Only the version's own adapter, not those below.")] = False,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign with this ECDSA P-256 private key (PEM).")
    ] = None,
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Write a version's stack into one file, for `kswapctl import` elsewhere; prints the hash to tell the receiver.

    Example: `kswapctl bundle signs -o signs.kswap`
    """
    with open_home(home) as registry:
        from kswapctl.operations.share import Wish
        from kswapctl.operations.share import bundle as write

        version = registry.resolve(ref)
        made = write(registry, version, Wish(output, with_base, only, overwrite, key), command_line())
    size = output.stat().st_size
    shown = {"file": output, "version": version.ref, "bytes": size, "sha256": made.digest, "signed": key is not None}
    rows = [(output, version.ref, len(made.parcel.manifest.steps), render.size(size), made.digest)]
    render.data(shown, render.table("", ["file", "version", "#adapters", "#size", "sha256"], rows))


def import_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `kswapctl bundle` wrote.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The model it becomes or adds to.")] = "",
    branch: OnBranch = "",
    sha256: Annotated[str, typer.Option(metavar="HASH", help="Refuse any other file than the one told of.")] = "",
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Refuse what this public key (PEM) did not sign.")
    ] = None,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Register what a bundle holds, once every byte and the composed weights prove right; else nothing.

    Example: `kswapctl import signs.kswap`
    """
    with open_home(home, on_wait=render.waiting) as registry, render.Live() as live:
        from kswapctl.operations.remote import Trust, take

        received = take(registry, file, Trust(sha256, key), command_line(), live, model=name, branch=branch)
    _show(received)


def push(
    ref: options.Ref,
    place: Annotated[str, typer.Argument(metavar="DEST", help="hf-hub:ORG/NAME, a folder, or an fsspec URL.")],
    with_base: WithBase = False,
    public: Annotated[bool, typer.Option("--public", help="A new Hub repository is visible to everybody.")] = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Publish a version's stack; refuses to replace versions that this one does not stand on.

    Example: `kswapctl push signs hf-hub:me/signs`, `kswapctl push signs@2 /mnt/models/signs`
    """
    with open_home(home) as registry:
        from kswapctl.operations.remote import push as publish

        version = registry.resolve(ref)
        pushed = publish(registry, version, place, with_base=with_base, public=public, command=command_line())
    shown = {"version": version.ref, "place": pushed.place, "bytes": pushed.parcel.size}
    rows = [(version.ref, pushed.place, render.size(pushed.parcel.size))]
    render.data(shown, render.table("", ["version", "is now in", "#size"], rows))


def pull(
    place: Annotated[str, typer.Argument(metavar="SOURCE", help="hf-hub:ORG/NAME[@TAG], a folder, or an fsspec URL.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model it becomes or adds to.")],
    branch: OnBranch = "",
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Register what was pushed to a place, once every byte and the composed weights prove right; else nothing.

    Example: `kswapctl pull hf-hub:me/signs signs`
    """
    with open_home(home, on_wait=render.waiting) as registry, render.Live() as live:
        from kswapctl.operations.remote import pull as take

        received = take(registry, place, name, branch, command_line(), live)
    _show(received)


def _show(received: Received) -> None:
    version = received.version
    shown = {"version": version.ref, "fingerprint": version.fingerprint, "added": received.added}
    rows = [(version.ref, received.added, version.fingerprint)]
    render.data(shown, render.table("", ["version", "#new", "stack"], rows))


COMMANDS = {"bundle": bundle, "import": import_bundle, "push": push, "pull": pull}
