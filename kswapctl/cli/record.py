"""Commands of the forgetting record: write it, check it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from kswapctl.cli import options, render
from kswapctl.operations.home import open_home
from kswapctl.spec import listed


def record(
    ref: options.Ref,
    output: options.Output,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign with this ECDSA P-256 private key (PEM).")
    ] = None,
    request: Annotated[str, typer.Option(metavar="TEXT", help="The asker's reference, such as a ticket.")] = "",
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Write the forgetting record of an audited version: what was asked, done, measured, and what remains.

    Example: `kswapctl record signs --request T-17 --key key.pem -o signs.record.json`
    """
    with open_home(home, read_only=True) as registry:
        from kswapctl.operations.record import earlier_verdicts, write_record

        version = registry.resolve(ref)
        told = write_record(registry, version, output, key, request, overwrite)
    signed = "yes" if key else "no"
    audit = told["audit"]
    verdict = f"{audit['verdict']} ({audit['tier']}, {audit['reference']})"
    rows = [(output, version.ref, verdict, "; ".join(earlier_verdicts(told)) or "-", told["residue"]["level"], signed)]
    columns = ["file", "version", "last audit", "audits before", "residue", "signed"]
    render.data({"file": str(output), "signed": key is not None, "record": told}, render.table("", columns, rows))


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `kswapctl record` wrote.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The signer's public key (PEM); without it no signature counts.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Also: does this registry's history have it?")] = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Check a forgetting record: its signature, that its verdict follows from its measures; exit code 12 if not.

    Example: `kswapctl verify signs.record.json --key public.pem --history`
    """
    with ExitStack() as stack:
        registry = stack.enter_context(open_home(home, read_only=True)) if history else None
        from kswapctl.operations.record import verify_record

        found = verify_record(file, key, registry)
    rows = [
        ("version", found.version),
        ("forgotten", listed(found.forgotten)),
        ("last audit", found.verdict),
        ("audits before", "; ".join(found.earlier) or "-"),
        ("residue", found.residue),
        ("signature", "holds" if found.signed else "not checked: --key"),
        ("history", "has it" if found.known else "not asked: --history"),
    ]
    render.data(found, render.table(str(file), ["", ""], rows))


COMMANDS = {"record": record, "verify": verify}
