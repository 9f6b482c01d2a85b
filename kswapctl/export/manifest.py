"""The list of what is shared: a model, versions of its stack, and every file with its size and hash.

Read with suspicion: unknown keys, odd values and names that lead elsewhere are refused before anything is fetched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kswapctl.errors import IntegrityError, UnsafeInputError, WrongBaseError
from kswapctl.models.foreign import LARGEST_CONFIG
from kswapctl.models.strict import UnfitError, fit, parse

NAME = "manifest.json"
"""Name of the list itself."""
FORMAT = "kswapctl-1"
"""What the list calls its form; another form is refused."""
LARGEST = 16 * 2**20
"""Bytes of a list."""
LARGEST_FILE = 2**36
"""Bytes of one file."""
BASE_FILE = "model.safetensors"
"""Name of a base's file in the registry."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Names of an adapter's files, PEFT's own."""


@dataclass(frozen=True)
class Listed:
    """A file, as it must be."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Base:
    """The model beneath the stack."""

    name: str
    task: str
    source: str
    spec: dict[str, Any]
    classes: list[str]
    fingerprint: str
    files: dict[str, Listed]
    """Empty where the tensors are not shared."""


@dataclass(frozen=True)
class Step:
    """One version of the stack."""

    number: int
    """Where it stood in the registry it comes from."""
    kind: str
    method: str
    spec: dict[str, Any]
    state: dict[str, Any]
    adapter: str
    weights: str
    fingerprint: str
    metrics: dict[str, float]
    note: str
    created: str
    files: dict[str, Listed]


@dataclass(frozen=True)
class Manifest:
    """All that is shared."""

    base: Base
    parent: str
    """Fingerprint of the stack below the first step; the base's own where the stack is whole."""
    steps: tuple[Step, ...]

    @property
    def top(self) -> str:
        """Fingerprint of the whole stack."""
        return self.steps[-1].fingerprint if self.steps else self.parent

    def members(self) -> dict[str, Listed]:
        """Every file by its place; places follow from the content, a stranger's names are never used."""
        places = {f"base/{name}": listed for name, listed in self.base.files.items()}
        for depth, step in enumerate(self.steps, start=1):
            places |= {f"{folder_of(depth, step)}/{name}": listed for name, listed in sorted(step.files.items())}
        return places

    def dump(self) -> bytes:
        """The list as JSON, with a hash of itself; equal lists give equal bytes."""
        value = {"format": FORMAT} | dataclasses.asdict(self)
        digest = hashlib.sha256(_canonical(value)).hexdigest()
        return _canonical(value | {"digest": digest}) + b"\n"


def folder_of(depth: int, step: Step) -> str:
    """Where the files of the step at ``depth`` (from 1) lie; another adapter has another place."""
    return f"adapters/{depth:04}-{step.adapter[:12]}"


def load(data: bytes) -> Manifest:
    """Read a list; anything unexpected is an :class:`UnsafeInputError`, a broken chain a :class:`WrongBaseError`."""
    if len(data) > LARGEST:
        raise UnsafeInputError(f"{NAME} has {len(data)} bytes, at most {LARGEST} are read")
    value = parse(data, NAME)
    try:
        fit(value, _MANIFEST, "manifest")
        manifest = _build(value)
    except UnfitError as error:
        raise UnsafeInputError(
            f"{NAME} is not what this release writes: {error}", "get it again, or with a newer release"
        ) from error
    _check_chain(manifest)
    if manifest.dump() != data:
        raise IntegrityError(f"{NAME} was changed after it was made", "get it again")
    return manifest


def _build(value: Mapping[str, Any]) -> Manifest:
    base = value["base"]
    if base["spec"]["classes"] != base["classes"] or len(set(base["classes"])) != len(base["classes"]):
        raise UnfitError("the classes of the model contradict each other")
    steps = tuple(Step(**{**step, "files": _listed(step["files"])}) for step in value["steps"])
    return Manifest(Base(**{**base, "files": _listed(base["files"])}), value["parent"], steps)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _listed(files: Mapping[str, Any]) -> dict[str, Listed]:
    return {name: Listed(**listed) for name, listed in files.items()}


def _check_chain(manifest: Manifest) -> None:
    """Each step's fingerprint is the one below and its adapter, hashed."""
    below = manifest.parent
    for step in manifest.steps:
        if hashlib.sha256((below + step.adapter).encode()).hexdigest() != step.fingerprint:
            raise WrongBaseError(
                f"version {step.number} does not stand on the one before it", "the stack was put together wrongly"
            )
        below = step.fingerprint


def check_names(names: Iterator[str] | list[str], manifest: Manifest) -> None:
    """The files that are there are those that are listed; one more or less is refused."""
    there, listed = set(names), {NAME, *manifest.members()}
    for name in sorted(there - listed):
        raise UnsafeInputError(f"it holds {name[:80]!r}, which is not listed", "it was changed after it was made")
    for name in sorted(listed - there):
        raise UnsafeInputError(f"{name} is listed, but is not there", "get it again")


def _text(limit: int) -> Any:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _matching(pattern: str) -> Any:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _between(low: int, high: int) -> Any:
    return lambda value: type(value) is int and low <= value <= high


def _mapping(keys: Any, values: Any) -> Any:
    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        for key, item in value.items():
            fit(key, keys, "key")
            fit(item, values, key)
        return True

    return check


def _with(required: Mapping[str, Any]) -> Any:
    """A mapping that has these keys; what else it has is data that nothing acts upon."""

    def check(value: Any) -> bool:
        fit({key: value.get(key) for key in required} if isinstance(value, dict) else value, dict(required), "value")
        return True

    return check


_DIGEST = _matching(r"[0-9a-f]{64}")
_LABEL = _matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CLASS = _text(300)
_FILE = {"sha256": _DIGEST, "size": _between(0, LARGEST_FILE)}
_CONFIG = {"sha256": _DIGEST, "size": _between(0, LARGEST_CONFIG)}
_PLAIN = (None, bool, int, float, _text(200))
_PREPROCESSING = {
    "input_size": lambda value: isinstance(value, list) and len(value) == 3 and all(map(_between(1, 8192), value)),
    "mean": [float],
    "std": [float],
    "interpolation": _text(40),
    "crop_pct": float,
    "crop_mode": _text(40),
}
_BASE_SPEC = {
    "architecture": _matching(r"[a-z0-9][a-z0-9_]{0,99}(\.[a-z0-9_]{1,99})?"),
    "arguments": _mapping(_matching(r"[a-z][a-z0-9_]{0,63}"), (*_PLAIN, [_PLAIN])),
    "classes": [_CLASS],
    "preprocessing": _PREPROCESSING,
    "task": _LABEL,
    "classifier": _text(200),
    "blocks": [{"name": _text(200), "layers": [_text(200)]}],
    "parameters": _between(0, 2**48),
    "data": _text(4096),
}
_STEP_SPEC = _with(
    {"kind": _LABEL, "classes": [_CLASS], "method": _LABEL, "preset": _LABEL, "source": _text(4096), "seed": int}
)
_RECORD = _with(
    {
        "steps": int,
        "met": bool,
        "changed blocks": [_text(200)],
        "data": _mapping(_text(64), _with({"images": int, "commitment": _text(200), "skipped": int})),
    }
)
_STATE = _with(
    {
        "classes": [_CLASS],
        "learned": _mapping(_CLASS, int),
        "forgotten": _mapping(_CLASS, int),
        "sources": [_text(4096)],
        "record": _RECORD,
    }
)
_STEP = {
    "number": _between(1, 10**9),
    "kind": _LABEL,
    "method": _LABEL,
    "spec": _STEP_SPEC,
    "state": _STATE,
    "adapter": _DIGEST,
    "weights": _DIGEST,
    "fingerprint": _DIGEST,
    "metrics": _mapping(_text(64), float),
    "note": _text(10_000),
    "created": _matching(r"[0-9T:.+Z-]{10,40}"),
    "files": dict(zip(ADAPTER_FILES, (_CONFIG, _FILE), strict=True)),
}
_MANIFEST = {
    "format": FORMAT,
    "digest": _DIGEST,
    "parent": _DIGEST,
    "base": {
        "name": _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        "task": _LABEL,
        "source": _text(4096),
        "spec": _BASE_SPEC,
        "classes": [_CLASS],
        "fingerprint": _DIGEST,
        "files": ({}, {BASE_FILE: _FILE}),
    },
    "steps": [_STEP],
}
