"""Commands that change what a model knows: learn, forget, swap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line, names, pairs
from kswapctl.errors import UsageError
from kswapctl.operations.home import open_home
from kswapctl.spec import DEPTHS, Change, Kind, Rehearsal, Targets, listed, method_at

if TYPE_CHECKING:
    from kswap_registry import Version

    from kswapctl.operations.change import Result

REACHES = {
    "shallow": " (shallow: what it says, not what its features hold; --depth deep goes further)",
    "deep": " (deep: what it says, and what its features hold)",
}
PARTLY = " (deep, where images have boxes or masks: what it says, and what its classifier reads)"
"""What deep means there: what a block says of an image tells not which of its items it is about."""


def learn(
    model: options.Head,
    data: options.Data,
    classes: options.Classes = None,
    home: options.Home = None,
    retain_data: options.RetainData = "",
    retain_share: options.RetainShare = 0.1,
    retain_per_class: options.RetainPerClass = None,
    target_learn: options.TargetLearn = 0.95,
    max_retain_drop: options.MaxRetainDrop = 0.01,
    method: options.MethodName = "",
    preset: options.Preset = "default",
    settings: options.Settings = None,
    blocks: options.Blocks = "",
    seed: options.Seed = 0,
    again: options.Again = False,
    skip_bad: options.SkipBad = False,
    onto: options.Onto = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    cache_gb: options.CacheGb = Change.cache_gb,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a version that knows more: its classifier grows by the classes to learn.

    Example: `kswapctl learn signs --data signs43 --classes 20_kmh,verbot_der_einfahrt`
    """
    _run(model, [_change("learn", locals())], home, onto)


def forget(
    model: options.Head,
    classes: options.Classes,
    data: options.Data = "",
    home: options.Home = None,
    retain_data: options.RetainData = "",
    retain_share: options.RetainShare = 0.1,
    retain_per_class: options.RetainPerClass = None,
    target_forget: options.TargetForget = 0.01,
    max_retain_drop: options.MaxRetainDrop = 0.01,
    method: options.MethodName = "",
    depth: options.Depth = "",
    preset: options.Preset = "default",
    settings: options.Settings = None,
    blocks: options.Blocks = "",
    seed: options.Seed = 0,
    again: options.Again = False,
    skip_bad: options.SkipBad = False,
    onto: options.Onto = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    cache_gb: options.CacheGb = Change.cache_gb,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a version that knows less: the classes stay in the classifier, the backbone forgets them.

    Example: `kswapctl forget signs --classes 30_kmh,gefahrenstelle --depth deep`
    """
    _run(model, [_change("forget", locals())], home, onto)


def swap(
    model: options.Head,
    learn_data: Annotated[str, typer.Option("--learn", metavar="DIR", help="Images of the classes to learn.")],
    forget_classes: Annotated[
        str, typer.Option("--forget", metavar="A,B", help="Classes to forget.", callback=options.named_classes)
    ],
    learn_classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="A,B",
            help="Classes of --learn to learn; else all that are new.",
            callback=options.named_classes,
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Images of what is forgotten, and of what must stay while learning; "
            "else what was used before, and --learn.",
        ),
    ] = "",
    order: Annotated[str, typer.Option(help="Letters l and f: lf, fl, flf, lfl.")] = "lf",
    home: options.Home = None,
    retain_share: options.RetainShare = 0.1,
    retain_per_class: options.RetainPerClass = None,
    target_forget: options.TargetForget = 0.01,
    target_learn: options.TargetLearn = 0.95,
    max_retain_drop: options.MaxRetainDrop = 0.01,
    method: options.MethodName = "",
    depth: options.Depth = "",
    preset: options.Preset = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of both, or as learn.NAME or forget.NAME of one (may be repeated).",
        ),
    ] = None,
    seed: options.Seed = 0,
    again: options.Again = False,
    skip_bad: options.SkipBad = False,
    blocks: options.Blocks = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    cache_gb: options.CacheGb = Change.cache_gb,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn, then forget (or in another order), one adapter each.

    Example: `kswapctl swap signs --learn signs43 --classes 20_kmh --forget 30_kmh`
    """
    given = locals()
    told = _by_kind(settings or [])
    learning = {"classes": learn_classes, "data": learn_data, "retain_data": data, "settings": told["learn"]}
    changes = {
        "l": _change("learn", given | learning),
        "f": _change("forget", given | {"classes": forget_classes, "settings": told["forget"]}),
    }
    if set(order) != set(changes):
        raise UsageError(f"--order {order!r} is not made of l and f", "use lf, fl, flf or lfl")
    _check_both(told["both"], changes.values())
    _run(model, [changes[letter] for letter in order], home)


def _by_kind(settings: list[str]) -> dict[str, list[str]]:
    """What ``--set`` says of both, of learning and of forgetting; what it says of one of them by name goes first."""
    both: list[str] = []
    own: dict[str, list[str]] = {"learn": [], "forget": []}
    for text in settings:
        kind, dot, rest = text.partition(".")
        if not dot or "=" in kind:
            both.append(text)
        elif kind in own:
            own[kind].append(rest)
        else:
            raise UsageError(f"--set {text}: {kind!r} is none of the operations", "write learn.NAME or forget.NAME")
    return {"both": both} | {kind: both + texts for kind, texts in own.items()}


def _check_both(settings: list[str], changes: Iterable[Change]) -> None:
    """A hyper-parameter that only one of the methods has is not one of both."""
    from dataclasses import fields

    from kswapctl.methods import find_method

    methods = {change.kind: find_method(change.method, change.kind) for change in changes}
    has = {kind: {f.name for f in fields(method)} - method.idle().keys() for kind, method in methods.items()}
    for name in pairs(settings):
        kinds = [kind for kind, names_there in has.items() if name in names_there]
        if len(kinds) == 1:
            raise UsageError(f"--set {name} is a hyper-parameter of {kinds[0]} alone", f"--set {kinds[0]}.{name}=VALUE")


def _change(kind: Kind, given: Mapping[str, Any]) -> Change:
    """The request that a command's options make; options it does not have keep their defaults."""
    usual = Targets()
    return Change(
        kind=kind,
        classes=names(given["classes"] or ""),
        source=given["data"],
        retain_source=given.get("retain_data", ""),
        method=method_at(given.get("depth", "") if kind == "forget" else "", given["method"]),
        preset=given["preset"],
        settings=pairs(given.get("settings")),
        targets=Targets(
            forget=given.get("target_forget", usual.forget),
            retain_drop=given["max_retain_drop"],
            learn=given.get("target_learn", usual.learn),
        ),
        rehearsal=Rehearsal(given["retain_share"], given.get("retain_per_class")),
        blocks=given.get("blocks", ""),
        seed=given["seed"],
        again=given.get("again", False),
        skip_bad=given["skip_bad"],
        device=given["device"],
        precision=given.get("precision", "auto"),
        cache_gb=given.get("cache_gb", Change.cache_gb),
        cache_dir=str(given.get("cache_dir") or ""),
    )


def _run(model: str, changes: list[Change], home: options.Home, onto: str = "") -> None:
    with open_home(home, on_wait=render.waiting) as registry, render.Live() as live:
        from kswapctl.operations.change import apply_all

        results = apply_all(registry, model, changes, command_line(), live, onto)
    if not results:  # another process of the same operation prints
        return
    render.data([_shown(r) for r in results], table(results))
    for result in results:
        if result.version.kind == "forget":
            render.say(_what_is_left(result.version, result.audited))


def _what_is_left(version: Version, audited: bool) -> str:
    """What forgetting to a depth means, and who judges it."""
    judge = f"how much can be had back, kswapctl audit {version.ref} says"
    if not audited:
        judge = f"what is now answered in its place, kswapctl eval {version.ref} says"
    depth = next((d for d, method in DEPTHS.items() if method == version.method), "")
    reach = REACHES.get(depth, "") if audited or depth != "deep" else PARTLY
    return f"forgotten by {version.method}{reach}: {judge}"


def _shown(result: Result) -> dict[str, object]:
    return {
        "version": result.version.ref,
        "kind": result.version.kind,
        "classes": result.version.spec["classes"],
        "validation": result.outcome.validation,
        "met": result.outcome.met,
        "steps": result.outcome.steps,
        "changed_blocks": list(result.outcome.changed),
        "bytes": result.version.size,
        "seconds": round(result.seconds, 1),
        "targets": asdict(Targets(**result.version.spec["targets"])),
    }


def table(results: list[Result]) -> Table:
    """Finished operations, a row each."""
    rows = [
        (
            r.version.ref,
            f"{r.version.kind} {listed(r.version.spec['classes'])}",
            render.percent(r.outcome.validation.get("learn", r.outcome.validation.get("forget"))),
            render.percent(r.outcome.validation["retain"]),
            render.points(r.outcome.validation["retain"] - r.outcome.validation["retain before"]),
            "yes" if r.outcome.met else "no",
            len(r.outcome.changed),
            render.size(r.version.size),
            f"{r.seconds:.0f} s",
        )
        for r in results
    ]
    columns = [
        "version",
        "change",
        "#its classes %",
        "#retained %",
        "#change",
        "targets met",
        "#blocks",
        "#size",
        "#time",
    ]
    return render.table("on the validation part; kswapctl eval measures on test", columns, rows)


COMMANDS = {"learn": learn, "forget": forget, "swap": swap}
