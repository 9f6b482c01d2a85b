"""JSON from strangers: nothing twice, nothing odd, nothing deep, and exactly the shape that is expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from kswapctl.errors import UnsafeInputError

DEEPEST = 32
"""Levels of nesting; ours need eight."""


class UnfitError(ValueError):
    """A value is not what it must be; the message says where."""


def parse(data: bytes, what: str) -> Any:
    """The JSON value in ``data``; a repeated key, NaN, NUL or deep nesting is an :class:`UnsafeInputError`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        _walk(value, 0)
    except (ValueError, RecursionError) as error:
        raise UnsafeInputError(f"{what} is not sound JSON ({str(error)[:120]})") from error
    return value


def fit(value: Any, shape: Any, where: str) -> None:
    """Check ``value`` against ``shape``, else :class:`UnfitError`.

    A shape is a type (a float also takes a whole number), a tuple of alternatives, a list of one shape for any number
    of items, a dict of keys to shapes with no key missing or left over, or a function that answers whether it will do.
    """
    if isinstance(shape, dict):
        _fit_keys(value, shape, where)
    elif isinstance(shape, list):
        _need(isinstance(value, list), where, value)
        for index, item in enumerate(value):
            fit(item, shape[0], f"{where}[{index}]")
    elif isinstance(shape, tuple):
        _need(any(_fits(value, choice, where) for choice in shape), where, value)
    elif isinstance(shape, type):
        same = type(value) is shape or (shape is float and type(value) is int)
        _need(same and not (isinstance(value, float) and not math.isfinite(value)), where, value)
    elif callable(shape):
        _need(bool(shape(value)), where, value)
    else:
        _need(value == shape and type(value) is type(shape), where, value)


def _fit_keys(value: Any, shape: Mapping[str, Any], where: str) -> None:
    _need(isinstance(value, dict), where, value)
    for key in shape:
        if key not in value:
            raise UnfitError(f"{where}.{key} is missing")
    for key, inner in value.items():
        if key not in shape:
            raise UnfitError(f"{where} has an unknown key {key[:80]!r}")
        fit(inner, shape[key], f"{where}.{key}")


def _fits(value: Any, shape: Any, where: str) -> bool:
    try:
        fit(value, shape, where)
    except UnfitError:
        return False
    return True


def _need(condition: bool, where: str, value: Any) -> None:
    if not condition:
        raise UnfitError(f"{where} may not be {repr(value)[:80]}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _walk(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("a text holds NUL or half a character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
    elif isinstance(value, list):
        for item in value:
            _walk(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _walk(key, depth + 1)
            _walk(item, depth + 1)
