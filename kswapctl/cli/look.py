"""Commands that look and undo: list, show, diff, rollback, tag, methods. Only diff and methods need torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from kswap_registry import HeadMoved, Model, Registry, Version, tombstones
from rich.table import Table

from kswapctl.cli import options, render
from kswapctl.cli.options import command_line
from kswapctl.errors import UsageError, counted
from kswapctl.operations.home import open_home
from kswapctl.spec import Knowledge, listed, named

MANY = 8
"""Arguments of an architecture above which a table only counts them: transformers' have dozens."""


def list_versions(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="One model; else all.")] = "",
    home: options.Home = None,
    limit: Annotated[int, typer.Option(min=1, help="Most versions of each model, the latest; the head as well.")] = 50,
    json: options.Json = False,
) -> None:
    """List versions, the head marked with an arrow.

    Example: `kswapctl list signs`
    """
    with open_home(home, read_only=True) as registry:
        chosen = [registry.model(model)] if model else registry.models()
        found = [(m, _latest(registry, m, limit)) for m in chosen]
        every = [(m, v) for m, versions in found for v in versions]
        missing = {v.ref: tombstones.missing(registry, v) for _, v in every}
    rows = [
        (
            "->" if v.number == m.head else "",
            v.ref,
            "" if not v.number else f"on {m.name}@{v.parent or 'base'}",
            v.kind,
            classes_of(v),
            " ".join(f"{k} {render.percent(x)}" for k, x in v.metrics.items() if k in {"learn", "forget", "retain"}),
            _stored(v, missing[v.ref]),
            ", ".join(v.tags),
            v.created[:16].replace("T", " "),
        )
        for m, v in every
    ]
    for m, versions in found:
        if hidden := versions[-1].number + 1 - len(versions):
            render.say(f"{m.name} has {counted(hidden, 'older version')}: --limit shows more")
    columns = ["", "version", "", "kind", "classes", "validation %", "#size", "tags", "made (UTC)"]
    shown = [asdict(v) | {"head": v.number == m.head, "missing": missing[v.ref]} for m, v in every]
    render.data(shown, render.table("", columns, rows))


def _latest(registry: Registry, model: Model, limit: int) -> list[Version]:
    """The newest versions, and the head before them where it is older."""
    newest = registry.versions(model.name, limit)
    return newest if any(v.number == model.head for v in newest) else [registry.resolve(model.name), *newest]


def show(ref: options.Ref, home: options.Home = None, json: options.Json = False) -> None:
    """Show a model (what can be adapted in it) or a version (what was done, with what, how it went).

    Example: `kswapctl show signs`, `kswapctl show signs@2`
    """
    with open_home(home, read_only=True) as registry:
        if "@" in ref:
            version = registry.resolve(ref)
            model = registry.model(version.model)
            render.data(asdict(version), *_version_tables(model, version, tombstones.missing(registry, version)))
        else:
            model = registry.model(ref)
            render.data(asdict(model), *_model_tables(registry, model))


def diff(
    first: Annotated[str, typer.Argument(metavar="MODEL[@V]", help="The earlier version.")],
    second: Annotated[str, typer.Argument(metavar="MODEL[@V]", help="The later version.")],
    data: options.EvalData = None,
    skip_bad: options.SkipBad = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two versions of a model: accuracy by set, weight change by block.

    Example: `kswapctl diff signs@base signs@2`
    """
    with open_home(home, read_only=True) as registry, render.Live() as live:
        from kswapctl.operations.look import compare

        one, two = registry.resolve(first), registry.resolve(second)
        if one.model != two.model:
            raise UsageError(f"{one.ref} and {two.ref} are of different models", "compare versions of one model")
        result = compare(registry, one, two, data or [], skip_bad, live)
    accuracy = [
        (name, render.percent(a), render.percent(b), render.points(b - a)) for name, (a, b) in result.accuracies.items()
    ]
    title = f"{one.ref} to {two.ref}" + (f", {result.metric} on test" if result.metric else "")
    blocks = [(b.name, f"{b.change:.4f}", f"{100 * b.relative:.2f}") for b in result.blocks]
    render.data(
        {"first": one.ref, "second": two.ref} | asdict(result),
        render.table(title, ["set", f"#{one.ref} %", f"#{two.ref} %", "#change"], accuracy),
        render.table("", ["block", "#weight change", "#of its norm %"], blocks),
    )


def rollback(
    model: options.ModelName,
    to: Annotated[
        str, typer.Option(metavar="V", help="A number, -N steps, base, or a tag; else one step back.")
    ] = "-1",
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Move a model's head to another version, back or forward; nothing is lost.

    Example: `kswapctl rollback signs`, `kswapctl rollback signs --to 2`, `kswapctl rollback signs --to base`
    """
    if "@" in model:
        name, _, branch = model.partition("@")
        raise UsageError(
            "rollback takes a model, and moves its head",
            f"kswapctl rollback {name} --to V; of a branch: kswapctl branch {name} {branch} --to V",
        )
    with open_home(home, on_wait=render.waiting) as registry:
        before = registry.resolve(model)
        if not before.number and to.startswith("-"):
            raise UsageError(
                f"{model} is at its base: there is no step back", f"forward: --to N; kswapctl list {model}"
            )
        target = registry.resolve(f"{model}@{to.removeprefix(f'{model}@')}")
        try:
            now = registry.move_head(model, target.number, command=command_line(), expected=before.number)
        except HeadMoved as error:
            error.hint = f"look at what was made (kswapctl list {model}), and roll back again"
            raise
    render.data({"head": now.ref, "was": before.ref}, render.table("", ["head", "was"], [(now.ref, before.ref)]))


def tag(
    ref: options.Ref,
    name: Annotated[str, typer.Argument(help="The tag: letters, digits, . _ -")],
    force: Annotated[bool, typer.Option("--force", help="Move a tag that exists.")] = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Give a version a name of its own.

    Example: `kswapctl tag signs@2 shipped`
    """
    with open_home(home) as registry:
        version = registry.resolve(ref)
        registry.tag(version.model, version.number, name, command=command_line(), force=force)
    render.data({"tag": name, "version": version.ref}, render.table("", ["tag", "version"], [(name, version.ref)]))


def methods(
    name: Annotated[str, typer.Argument(metavar="[METHOD]", help="One method, with its hyper-parameters.")] = "",
    json: options.Json = False,
) -> None:
    """List the methods, or the hyper-parameters of one.

    Example: `kswapctl methods`, `kswapctl methods gs-lora`
    """
    from kswapctl.methods.describe import describe

    described = describe(name)
    if not name:
        rows = [(d["name"], d["kind"], d["summary"], d["source"]) for d in described]
        render.data(described, render.table("", ["method", "kind", "what it does", "source"], rows))
        return
    tables = [
        render.table(
            f"{d['name']}, {d['kind']}: {d['summary']}",
            ["--set", *d["presets"], "meaning"],
            [(p["name"], *(p["values"][preset] for preset in d["presets"]), p["help"]) for p in d["parameters"]],
        )
        for d in described
    ]
    render.data(described, *tables)


def classes_of(version: Version) -> str:
    """The classes that a version's change is about, four of them by name."""
    return named(version.spec.get("classes", []))


def place(model: str | None, number: int | None) -> str:
    """A version as it is written, or the model where it is about no version."""
    return model or "" if number is None else f"{model}@{number or 'base'}"


def _model_tables(registry: Registry, model: Model) -> list[Table]:
    spec, arguments = model.spec, model.spec["arguments"]
    base = registry.resolve(f"{model.name}@base")
    told = ", ".join(f"{name}={value}" for name, value in arguments.items())
    facts = {
        "source": model.source,
        "task": model.task,
        "architecture": spec["architecture"],
        "arguments": f"{len(arguments)}, see --json" if len(arguments) > MANY else told or "-",
        "input": "x".join(map(str, spec["preprocessing"]["input_size"])),
        "classes": f"{len(model.classes)}: {listed(model.classes[:6])}{' ...' if len(model.classes) > 6 else ''}",
        "classifier": spec["classifier"],
        "parameters": f"{spec['parameters']:,}",
        "data": spec.get("data") or "-",
        "tensors": model.fingerprint,
        "head": registry.resolve(model.name).ref,
        "base stored": _stored(base, tombstones.missing(registry, base)),
        "added": model.created,
    }
    blocks = [
        (b["name"], ", ".join(layer.removeprefix(b["name"] + ".") for layer in b["layers"])) for b in spec["blocks"]
    ]
    return [
        render.table(model.name, ["", ""], facts.items()),
        render.table("", ["block", "adapted layers"], blocks),
    ]


def _stored(version: Version, gone: Mapping[str, str]) -> str:
    """How much a version takes, or that its files are gone: missing or purged."""
    return ", ".join(sorted(set(gone.values()))) or render.size(version.size)


def _version_tables(model: Model, version: Version, gone: Mapping[str, str]) -> list[Table]:
    facts: dict[str, object] = {
        "kind": version.kind,
        "parent": place(model.name, version.parent) if version.number else "-",
        "made (UTC)": version.created,
        "tags": ", ".join(version.tags) or "-",
        "fingerprint": version.fingerprint,
        "stored": _stored(version, gone),
    }
    if version.number:
        record = version.state["record"]
        knowledge = Knowledge.from_json(version.state)
        facts |= {
            "method": f"{version.method} ({version.spec['preset']})",
            "classes": classes_of(version),
            "data": version.spec["source"],
            "seed": version.spec["seed"],
            "steps": record["steps"],
            "targets met": "yes" if record["met"] else "no",
            "blocks adapted": record.get("blocks", ""),
            "blocks changed": f"{len(record['changed blocks'])} of {len(model.spec['blocks'])}",
            "tunable ratio": _ratio(record.get("values", 0), model.spec["parameters"]),
            "validation": ", ".join(f"{k} {render.percent(v)} %" for k, v in version.metrics.items() if k != "loss"),
            "learned": listed(knowledge.learned) or "-",
            "forgotten": listed(knowledge.forgotten) or "-",
        }
        if record.get("lost"):
            facts["change not stored"] = f"{100 * record['lost']:.1f} % of its norm, at this rank"
        facts |= {f"images, {part}": d["images"] for part, d in record["data"].items()}
        skipped = sum(d["skipped"] for d in record["data"].values())
        facts |= {"skipped images": skipped} if skipped else {}
    return [render.table(version.ref, ["", ""], facts.items())]


def _ratio(values: int, parameters: int) -> str:
    """What an adapter stores, of what the model has; a bundle may tell of a model without parameters."""
    return f"{100 * values / parameters:.2f} %" if parameters else "-"


COMMANDS = {
    "list": list_versions,
    "show": show,
    "diff": diff,
    "rollback": rollback,
    "tag": tag,
    "methods": methods,
}
