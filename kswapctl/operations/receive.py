"""Take a version in: fetch what a manifest lists, prove it down to the composed weights, then register all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kswap_registry import (
    AlreadyExists,
    CorruptBlob,
    HeadMoved,
    MissingBlob,
    Model,
    Registry,
    UnknownModel,
    Version,
    creation,
)
from kswap_registry.adoption import Arrival, Landing, adopt
from kswap_registry.writing import Change, Checkpoint

from kswapctl.errors import IntegrityError, UsageError, WrongBaseError
from kswapctl.export.manifest import ADAPTER_FILES, BASE_FILE, Listed, Manifest, Step, folder_of
from kswapctl.models import checkpoint as checkpoints
from kswapctl.models.building import build, class_rows
from kswapctl.models.configured import refuse_cut
from kswapctl.models.families import is_dense
from kswapctl.models.foreign import check_config, check_tensors, grown
from kswapctl.models.header import Entry, read_header
from kswapctl.models.lora import fold
from kswapctl.models.lora import load as load_adapter
from kswapctl.models.weights import Weights, fingerprint, read
from kswapctl.operations.models import describe
from kswapctl.operations.points import point
from kswapctl.operations.versions import load_version
from kswapctl.progress import Progress
from kswapctl.spec import ModelSpec


class Origin(Protocol):
    """Where shared files come from: a bundle, a folder, a repository."""

    def fetch(self, name: str, listed: Listed, target: Path) -> None:
        """Copy one file to ``target``; bytes that are not those listed are an error that names it."""


@dataclass(frozen=True)
class Delivery:
    """What is to be taken in, and how."""

    manifest: Manifest
    origin: Origin
    place: str
    """Where it comes from, for the record."""
    name: str = ""
    """The model it becomes or adds to; empty means the one with its base, else its own name."""
    branch: str = ""
    """Put the versions on this branch instead of the main line."""


@dataclass(frozen=True)
class Received:
    """The version that was shared, here, and how many versions had to be added for it."""

    version: Version
    added: int


@dataclass(frozen=True)
class _Target:
    """Where the stack goes: a model with its base's file, and the versions of it that are known."""

    name: str
    model: Model | None
    """None where it is to be registered."""
    donor: Model | None
    """Another model that has the same base."""
    known: dict[str, Version]
    """By the fingerprint of their stacks."""


def receive(registry: Registry, delivery: Delivery, command: str, progress: Progress) -> Received:
    """Register what ``delivery`` holds; nothing is registered unless every byte and the composed weights are right."""
    manifest = delivery.manifest
    target = _find_target(registry, manifest, delivery.name)
    registry.require_space(2 * sum(listed.size for listed in manifest.members().values()))
    with creation.scratch(registry.folder) as scratch:
        files = _fetch(delivery, scratch, progress)
        point("import.after_fetch")
        _check_adapters(manifest, files, _base_path(registry, manifest, target, files))
        base = _check_base(registry, manifest, target, files)
        _check_weights(registry, manifest, target, files, base)
        point("import.after_check")
        for ref in _restore(registry, manifest, target, files, command):
            progress.note(f"put back the files of {ref}, which were lost or damaged")
        return _register(registry, delivery, target, files, base, command)


def _find_target(registry: Registry, manifest: Manifest, name: str) -> _Target:
    same = [model for model in registry.models() if model.fingerprint == manifest.base.fingerprint]
    spec = ModelSpec.from_json(manifest.base.spec)
    fits = [model.name for model in same if ModelSpec.from_json(model.spec) == spec]
    chosen = name or (fits[0] if len(fits) == 1 else manifest.base.name)
    try:
        model = registry.model(chosen)
    except UnknownModel:
        model = None
    if model is not None and model.fingerprint != manifest.base.fingerprint:
        raise WrongBaseError(
            f"it was made for another base than that of {chosen}",
            "give another name: import --as NAME, pull PLACE NAME",
        )
    if model is not None and chosen not in fits:
        raise WrongBaseError(
            f"{chosen} has the weights of its base, but names or feeds them otherwise (classes, size, mean, std)",
            "give another name: import --as NAME, pull PLACE NAME",
        )
    if model is None and not same and not manifest.base.files:
        raise WrongBaseError(
            f"no model here has its base {manifest.base.name} ({manifest.base.fingerprint[:12]})",
            "add that checkpoint first, or have it shared --with-base",
        )
    known = {version.fingerprint: version for version in registry.versions(chosen)} if model else {}
    if manifest.parent not in (known.keys() or {manifest.base.fingerprint}):
        raise WrongBaseError(
            "its adapter stands on a stack that is not here", "import the versions below it first, or the whole stack"
        )
    return _Target(chosen, model, same[0] if same else None, known)


def _fetch(delivery: Delivery, scratch: Path, progress: Progress) -> dict[str, Path]:
    members = delivery.manifest.members()
    progress.stage("fetching", len(members))
    files = {}
    for index, (name, listed) in enumerate(members.items()):
        files[name] = scratch / f"{index}-{Path(name).name}"  # the place here never follows from a stranger's name
        delivery.origin.fetch(name, listed, files[name])
        progress.advance()
    return files


def _base_path(registry: Registry, manifest: Manifest, target: _Target, files: Mapping[str, Path]) -> Path:
    if manifest.base.files:
        return files[f"base/{BASE_FILE}"]
    donor = target.model or target.donor
    assert donor is not None, "a target without the base was refused"
    return registry.blob(donor.files[BASE_FILE])


def _check_adapters(manifest: Manifest, files: Mapping[str, Path], base: Path) -> None:
    """Configurations and headers, before any tensor is read."""
    whole = manifest.parent == manifest.base.fingerprint
    below: dict[str, Entry] = read_header(base)
    for depth, step in enumerate(manifest.steps, start=1):
        config, weights = _paths(files, depth, step)
        form = check_config(config.read_bytes())
        adapter = read_header(weights)
        if whole:  # else the stack below may have a larger classifier: folding will tell
            check_tensors(form, adapter, below)
            below = grown(form, adapter, below)


def _check_base(registry: Registry, manifest: Manifest, target: _Target, files: Mapping[str, Path]) -> Weights:
    """The base's tensors, once they prove to be those that the stack was made for."""
    base, _ = read(_base_path(registry, manifest, target, files))
    if fingerprint(base) != manifest.base.fingerprint:
        raise IntegrityError("the tensors of the base are not those that its fingerprint names", "get it again")
    if target.model is None:
        spec = ModelSpec.from_json(manifest.base.spec)
        build(spec, base)  # fits the network it claims to be of
        if is_dense(spec.architecture):
            refuse_cut(spec.preprocessing, spec.architecture)
    return base


def _check_weights(
    registry: Registry, manifest: Manifest, target: _Target, files: Mapping[str, Path], base: Weights
) -> None:
    below = target.known.get(manifest.parent)
    weights = load_version(registry, below).weights if below is not None and below.number else base
    for depth, step in enumerate(manifest.steps, start=1):
        config, tensors = _paths(files, depth, step)
        adapter = load_adapter(dict(zip(ADAPTER_FILES, (config, tensors), strict=True)))
        if adapter.fingerprint != step.adapter:
            raise IntegrityError(f"the adapter of version {step.number} is not the one that is listed", "get it again")
        weights = fold(weights, adapter)
        if fingerprint(weights) != step.weights:
            raise WrongBaseError(
                f"version {step.number} does not compose to the weights that are listed",
                "a matrix library other than the one it was made with may round differently",
            )
        _check_rows(step, manifest, weights)


def _check_rows(step: Step, manifest: Manifest, weights: Weights) -> None:
    spec = manifest.base.spec
    rows = class_rows(spec["architecture"], weights.get(f"{spec['classifier']}.weight"))
    if rows != len(step.state["classes"]):
        raise WrongBaseError(f"version {step.number} names other classes than its classifier has rows")


def _register(
    registry: Registry, delivery: Delivery, target: _Target, files: Mapping[str, Path], base: Weights, command: str
) -> Received:
    manifest = delivery.manifest
    known = [depth for depth, step in enumerate(manifest.steps, start=1) if step.fingerprint in target.known]
    done = max(known, default=0)
    if target.model is not None and manifest.top in target.known:
        return Received(_branched(registry, delivery, target.known[manifest.top], command), 0)
    below = manifest.steps[done - 1].fingerprint if done else manifest.parent
    parent = target.known[below].number if target.known else 0
    arrivals = [_arrival(delivery, files, depth) for depth in range(done + 1, len(manifest.steps) + 1)]
    landing = Landing(target.name, parent, delivery.branch or "main")
    if target.model is None:
        checkpoint = _new_model(manifest, target.name, base)
        path = _base_path(registry, manifest, target, files)
        landing = dataclasses.replace(landing, checkpoint=checkpoint, files={BASE_FILE: path})
    try:
        return Received(adopt(registry, landing, arrivals, command), len(arrivals))
    except HeadMoved as error:
        error.message = f"it goes on from {error.expected}, but the head is at {error.found}"
        error.hint = "put it on a line of its own: --branch NAME"
        raise
    except AlreadyExists as error:
        raise UsageError(error.message, "choose another name") from error


def _restore(
    registry: Registry, manifest: Manifest, target: _Target, files: Mapping[str, Path], command: str
) -> list[str]:
    """Put back what is lost or damaged here of versions that are known, and name them; what was purged stays away."""
    restored: list[str] = []
    brought = {manifest.base.fingerprint: {BASE_FILE: files[f"base/{BASE_FILE}"]}} if manifest.base.files else {}
    for depth, step in enumerate(manifest.steps, start=1):
        brought[step.fingerprint] = dict(zip(ADAPTER_FILES, _paths(files, depth, step), strict=True))
    for mark, paths in brought.items():
        if mark not in target.known:
            continue
        version = target.known[mark]
        try:
            for digest in version.files.values():
                registry.blob(digest, verify=True)
        except (MissingBlob, CorruptBlob):
            with registry.exclusive(command):
                registry.store.add_all(paths)
            restored.append(version.ref)
    return restored


def _branched(registry: Registry, delivery: Delivery, version: Version, command: str) -> Version:
    """``version``, which is known here, on the branch that was asked for."""
    if delivery.branch and registry.branches(version.model).get(delivery.branch) != version.number:
        registry.branch(version.model, delivery.branch, version.number, command=command)
    return version


def _arrival(delivery: Delivery, files: Mapping[str, Path], depth: int) -> Arrival:
    step = delivery.manifest.steps[depth - 1]
    change = Change(
        kind=step.kind,
        method=step.method,
        spec=step.spec,
        state=step.state,
        adapter=step.adapter,
        weights=step.weights,
        metrics=step.metrics,
        note=step.note,
    )
    origin = {
        "from": delivery.place,
        "version": f"{delivery.manifest.base.name}@{step.number}",
        "created": step.created,
    }
    return Arrival(change, dict(zip(ADAPTER_FILES, _paths(files, depth, step), strict=True)), origin)


def _new_model(manifest: Manifest, name: str, base: Weights) -> Checkpoint:
    spec = ModelSpec.from_json(manifest.base.spec)
    described = describe(checkpoints.Checkpoint(spec, base), manifest.base.spec["data"])
    return Checkpoint(
        name,
        manifest.base.task,
        manifest.base.source,
        described,  # never the stranger's own description of blocks and classifier
        manifest.base.classes,
        manifest.base.fingerprint,
    )


def _paths(files: Mapping[str, Path], depth: int, step: Step) -> tuple[Path, Path]:
    config, weights = (files[f"{folder_of(depth, step)}/{name}"] for name in ADAPTER_FILES)
    return config, weights
