"""Canonical JSON and the hashes built on it: of version records, stacks and history entries."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from .errors import BadValue

ORIGIN = "0" * 64
"""The digest that stands before the first history entry."""


def canonical(value: object, what: str = "value") -> str:
    """JSON with sorted keys, no spaces, ASCII only, no NaN: equal values give equal text."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"the {what} is not plain JSON: {error}", "use text, finite numbers, lists, dicts") from error


def text(value: str, what: str) -> str:
    """``value`` as SQLite can keep it: NUL is refused, bytes that are not UTF-8 are kept escaped."""
    if "\0" in value:
        raise BadValue(f"the {what} holds a NUL character", "remove it")
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics as floats by name; NaN and infinity are refused."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise BadValue(f"the metric {name!r} is {value}", "record finite numbers only")
    return {text(name, "name of a metric"): float(value) for name, value in sorted(metrics.items())}


def sha256(value: str) -> str:
    """The SHA-256 of a text, in hex."""
    return hashlib.sha256(value.encode()).hexdigest()


def stack_fingerprint(parent: str, adapter: str) -> str:
    """The fingerprint of a stack: its parent's, then the adapter's, hashed."""
    return sha256(parent + adapter)


def record_digest(record: Mapping[str, Any]) -> str:
    """The digest of a model's or version's unchanging fields."""
    return sha256(canonical(record))


def event_digest(parent_digest: str, event: Mapping[str, Any]) -> str:
    """h_i = sha256(h_{i-1} || canonical JSON of the entry): an entry vouches for all before it."""
    return sha256(parent_digest + canonical(event))
