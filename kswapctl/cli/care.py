"""Commands that keep a registry healthy: doctor, gc, backup, restore, branch. Few need torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from kswap_registry import Registry

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.errors import IntegrityError, NotFoundError, UsageError, nearest
from kswapctl.operations.home import create_place, open_home


def doctor(
    home: options.Home = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every blob again, and compose every head.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Put what is damaged or left over into quarantine.")] = False,
    env: Annotated[bool, typer.Option("--env", help="Instead: do the libraries fit together?")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that the registry is sound; exit code 12 when it is not. Nothing is ever deleted.

    Example: `kswapctl doctor --deep`, `kswapctl doctor --env`
    """
    if env and (deep or fix):
        raise UsageError("--env looks at no registry", "leave out --deep and --fix, or --env")
    if env:
        return _libraries()
    with open_home(home, read_only=not fix) as registry, render.Live() as live:
        from kswapctl.operations.care import examine

        result = examine(registry, deep, fix, command_line(), live)
    rows = [(f.invariant, "serious" if f.serious else "minor", f.subject, f.message) for f in result.findings]
    moves = [(m.source.name, m.target) for m in result.moved]
    found = [{"invariant": i, "level": level, "subject": s, "message": text} for i, level, s, text in rows]
    moved = [{"from": str(m.source), "to": str(m.target)} for m in result.moved]
    tables = [render.table("", ["moved", "to"], moves)] if moves else []
    tables.append(render.table("", ["invariant", "level", "what", "finding"], rows or [("", "", "", "all is well")]))
    render.data({"sound": result.sound, "findings": found, "moved": moved}, *tables)
    if not result.sound:
        raise typer.Exit(IntegrityError.exit_code)
    return None


def _libraries() -> None:
    from kswapctl.operations.environment import check_libraries

    libraries = check_libraries()
    rows = [(lib.name, lib.version or "-", lib.problem or "ok", lib.hint) for lib in libraries]
    broken = any(lib.problem for lib in libraries)
    render.data(libraries, render.table("", ["library", "version", "state", "what to do"], rows))
    if broken:
        raise typer.Exit(1)


def gc(
    home: options.Home = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; else only tell.")] = False,
    grace: Annotated[str, typer.Option(metavar="TIME", help="Keep what is younger: 14d, 12h, 30m, 0.")] = "14d",
    json: options.Json = False,
) -> None:
    """Find what belongs to no version: blobs of operations that died, scratch files. Versions are never removed.

    Example: `kswapctl gc`, `kswapctl gc --apply --grace 1d`
    """
    from kswap_registry import cleanup

    from kswapctl.operations.care import parse_grace

    with open_home(home, read_only=not apply) as registry:
        result = cleanup.gc(registry, parse_grace(grace), dry_run=not apply, command=command_line())
        files = [(str(r.path.relative_to(registry.folder)), r.what, r.size, r.age) for r in result.garbage]
    rows = [(name, what, render.size(size), f"{age / 86400:.1f} d") for name, what, size, age in files]
    state = "removed" if result.removed else result.held_back or ("would be removed: say --apply" if files else "")
    title = f"{len(files)} files, {render.size(result.size)}" + (f", {state}" if state else "")
    shown = [{"file": name, "what": what, "bytes": size} for name, what, size, _ in files]
    render.data(
        {"files": shown, "bytes": result.size, "removed": result.removed, "held_back": result.held_back},
        render.table(title, ["file", "what", "#size", "#age"], rows),
    )


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="A new folder, or one file.")],
    overwrite: options.Overwrite = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Copy the whole registry, while it may be in use; every file is checked. The copy holds the registry's key.

    Example: `kswapctl backup signs-backup.tar`
    """
    with open_home(home, read_only=True) as registry:
        from kswapctl.operations.care import backup as copy

        copy(registry, target, overwrite)
    render.data({"backup": target}, render.table("", ["backup"], [[target]]))


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="What `kswapctl backup` wrote.")],
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Make a registry from a backup; nothing appears unless all of it proves sound.

    Example: `kswapctl restore signs-backup.tar --registry restored`
    """
    from kswapctl.operations.care import restore as copy

    with copy(source, create_place(home)) as registry:
        rows = [(registry.folder, ", ".join(m.name for m in registry.models()))]
    render.data({"registry": str(rows[0][0])}, render.table("", ["registry", "models"], rows))


def branch(
    ref: options.Ref,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A new branch, to start at MODEL[@V].")] = "",
    to: Annotated[str, typer.Option(metavar="V", help="Instead: move the branch NAME to this version.")] = "",
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """List a model's branches, start one, or move one: two lines of a model side by side, `MODEL@NAME` its head.

    Example: `kswapctl branch signs`, `kswapctl branch signs@2 night`, `kswapctl branch signs night --to 3`
    """
    if to and not name:
        raise UsageError("--to moves a branch, and none is named", "name it: MODEL NAME --to V; main is one of them")
    with open_home(home, read_only=not name) as registry:
        version = registry.resolve(ref)
        model = version.model
        if to:
            number = _place(registry, model, name, to)
            registry.move_head(model, number, action="branch-move", command=command_line(), branch=name)
        elif name:
            registry.branch(model, name, version.number, command=command_line())
        heads = registry.branches(model)
    rows = [(branch, f"{model}@{number or 'base'}") for branch, number in heads.items()]
    render.data(dict(rows), render.table("", ["branch", "head"], rows))


def _place(registry: Registry, model: str, branch: str, to: str) -> int:
    """The number of the version that ``to`` names; -N steps back are along the branch."""
    if not to.startswith("-") or branch == "main":
        return registry.resolve(f"{model}@{to}").number
    if branch not in registry.branches(model):
        raise NotFoundError(f"{model} has no branch {branch!r}", nearest(branch, registry.branches(model)))
    line = [0, *(v.number for v in registry.stack(registry.resolve(f"{model}@{branch}")))]
    if not to[1:].isdigit() or int(to[1:]) >= len(line):
        raise UsageError(f"{to} is no step back of {model}@{branch}", f"it has {len(line) - 1} operations")
    return line[-1 - int(to[1:])]


COMMANDS = {"doctor": doctor, "gc": gc, "backup": backup, "restore": restore, "branch": branch}
