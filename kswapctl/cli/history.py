"""The log: who did what when, and the proof that nobody changed it since. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer
from kswap_registry import Event, verify_history

from kswapctl.cli import options, render
from kswapctl.cli.look import place
from kswapctl.errors import IntegrityError, UsageError
from kswapctl.operations.home import open_home

LEAST = 12
"""Digits of a hash that nobody would hit on by chance."""


def log(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="One model; else all.")] = "",
    home: options.Home = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries, the latest.")] = 50,
    verify: Annotated[bool, typer.Option("--verify", help="Instead: check the whole chain of entries.")] = False,
    kept: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="Check it, and that a hash noted earlier (or how it begins) is in it."),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Instead: print the hash to keep elsewhere.")] = False,
    json: options.Json = False,
) -> None:
    """Show who did what when, oldest first. An entry vouches for all before it: keep the last hash elsewhere.

    Example: `kswapctl log signs`, `kswapctl log --head`, `kswapctl log --verify --kept 5e1f03a97c44`
    """
    if verify or head or kept is not None:
        if model:
            raise UsageError("the chain is of all models together", f"leave out {model}")
        return _chain(home, kept, told=verify or kept is not None)
    with open_home(home, read_only=True) as registry:
        if model:
            registry.model(model)  # an unknown one is an error, not an empty history
        found = registry.events(model or None, limit=limit + 1)
    events = found[-limit:]
    if len(found) > limit:
        render.say(f"the latest {limit} entries: --limit shows more")
    rows = [
        (
            e.seq,
            e.time[:19].replace("T", " "),
            e.user,
            e.action,
            place(e.model, e.number),
            _moved(e),
            e.command,
        )
        for e in events
    ]
    columns = ["#seq", "time (UTC)", "who", "action", "version", "head was", "command"]
    render.data([asdict(e) for e in events], render.table("", columns, rows))
    return None


def _chain(home: options.Home, kept: str | None, told: bool) -> None:
    wanted = None if kept is None else kept.lower().removesuffix("...")
    if wanted is not None and not re.fullmatch(rf"[0-9a-f]{{{LEAST},64}}", wanted):
        raise UsageError(f"{kept!r} is no hash", f"give what kswapctl log --head printed, or its first {LEAST} digits")
    with open_home(home, read_only=True) as registry:
        found = verify_history(registry, wanted)
    if found.first_bad is not None:
        raise IntegrityError(f"the history is not what it was: {found.reason}", "kswapctl doctor, or restore a backup")
    rows = [(found.head, f"{found.entries} entries, each as it was written")] if told else [(found.head,)]
    render.data(asdict(found), render.table("", [""] * len(rows[0]), rows))


def _moved(event: Event) -> str:
    if event.previous is None or event.previous == event.number:
        return ""
    return place(event.model, event.previous)


COMMANDS = {"log": log}
