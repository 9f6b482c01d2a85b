"""Adapters from strangers: their configuration and their tensors' names and shapes are checked before any is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kswapctl.errors import UnsafeInputError, WrongBaseError, counted
from kswapctl.models.header import Entry
from kswapctl.models.strict import UnfitError, fit, parse

LARGEST_RANK = 4096
"""No layer of a vision network has a larger useful rank."""
LARGEST_HEADS = 16
"""No network has a classifier after more layers."""
LARGEST_CONFIG = 2**18
"""Bytes of a configuration."""
PREFIX = "base_model.model."
"""What PEFT puts before each of the network's own names."""
_PATH = re.compile(r"[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64}){0,15}", re.ASCII)
"""A layer's path: a plain name, so that it can be no regular expression."""


@dataclass(frozen=True)
class Form:
    """What a configuration says, once it proved harmless."""

    rank: int
    layers: tuple[str, ...]
    """Adapted layers."""
    heads: tuple[str, ...]
    """Paths of the classifiers where they grew, else empty."""


def check_config(data: bytes) -> Form:
    """Read PEFT's configuration; whatever would make PEFT do more than plain LoRA is refused."""
    if len(data) > LARGEST_CONFIG:
        raise UnsafeInputError(f"an adapter's configuration has {len(data)} bytes")
    config = parse(data, "an adapter's configuration")
    try:
        fit(config, lambda value: isinstance(value, dict), "adapter_config.json")
        fit({k: config.get(k) for k in _OURS}, _OURS, "adapter_config.json")
        for key, value in config.items():
            if key not in _OURS:
                fit(value, _OTHERS.get(key, _is_off), f"adapter_config.json.{key[:80]}")
    except UnfitError as error:
        raise UnsafeInputError(f"not a plain LoRA configuration: {error}") from error
    return Form(config["r"], tuple(config.get("target_modules") or ()), tuple(config.get("modules_to_save") or ()))


def check_tensors(form: Form, adapter: Mapping[str, Entry], below: Mapping[str, Entry]) -> None:
    """The adapter's tensors are exactly those its configuration announces, and fit the network ``below``.

    ``below`` names tensors without PEFT's prefix. Everything else is a :class:`WrongBaseError`, with the first five.
    """
    expected = {PREFIX + name: entry for name, entry in _expected(form, below, adapter).items()}
    wrong = [
        f"{n} is {adapter[n].shape}, not {e.shape}" for n, e in expected.items() if n in adapter and adapter[n] != e
    ]
    wrong += [f"{n} is missing" for n in expected if n not in adapter]
    wrong += [f"{n} is left over" for n in adapter if n not in expected]
    if wrong:
        raise WrongBaseError(
            f"the adapter does not fit the model: {counted(len(wrong), 'tensor')} off ({'; '.join(wrong[:5])})",
            "it was made for another network",
        )


def grown(form: Form, adapter: Mapping[str, Entry], below: Mapping[str, Entry]) -> dict[str, Entry]:
    """The network's tensors above this adapter: the classifiers have grown."""
    parts = [f"{head}.{part}" for head in form.heads for part in ("weight", "bias")]
    return {**below, **{part: adapter[PREFIX + part] for part in parts if PREFIX + part in adapter}}


def _expected(form: Form, below: Mapping[str, Entry], adapter: Mapping[str, Entry]) -> dict[str, Entry]:
    named: dict[str, Entry] = {}
    for layer in form.layers:
        if f"{layer}.weight" not in below:
            raise WrongBaseError(f"the adapter changes {layer}, which the model does not have")
        out, *rest = below[f"{layer}.weight"].shape
        named[f"{layer}.lora_A.weight"] = Entry("F32", (form.rank, *rest))
        named[f"{layer}.lora_B.weight"] = Entry("F32", (out, form.rank, *(1 for _ in rest[1:])))
    for head in form.heads:
        known = below.get(f"{head}.weight")
        rows = adapter.get(f"{PREFIX}{head}.weight")
        if known is None or rows is None or len(rows.shape) < 2 or rows.shape[:1] < known.shape[:1]:
            raise WrongBaseError(f"the adapter grows {head}, which is not the model's classifier")
        named[f"{head}.weight"] = Entry("F32", (rows.shape[0], *known.shape[1:]))
        named[f"{head}.bias"] = Entry("F32", rows.shape[:1])
    return named


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def _are_paths(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) <= 4096 and all(map(_is_path, value)) and len(set(value)) == len(value)
    )


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


_OURS = {
    "peft_type": "LORA",
    "r": lambda value: type(value) is int and 1 <= value <= LARGEST_RANK,
    "lora_alpha": lambda value: type(value) in (int, float) and 0 < value < 1e6 and math.isfinite(value),
    "target_modules": _are_paths,
    "modules_to_save": lambda value: _are_paths(value) and len(value or ()) <= LARGEST_HEADS,
    "base_model_name_or_path": (None, lambda value: isinstance(value, str) and len(value) <= 200),
    "bias": "none",
}
"""Keys that must be there, and what they may say."""
_OTHERS = {
    "inference_mode": bool,
    "init_lora_weights": bool,
    "lora_dropout": (0, 0.0),
    "megatron_core": "megatron.core",
    "peft_version": lambda value: isinstance(value, str) and len(value) <= 64,
    "qalora_group_size": int,
}
"""Further keys that PEFT writes; any other must be switched off."""
