"""What timm's configuration of a network says beyond its weights: preprocessing and ImageNet's class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from kswapctl.errors import DataError
from kswapctl.models.heads import classifier_rows
from kswapctl.spec import Preprocessing

FIELDS = [f.name for f in fields(Preprocessing)]
"""Of timm's configuration, what preprocessing needs."""


def preprocessing(model: nn.Module, arguments: Mapping[str, Any], stated: Mapping[str, Any]) -> Preprocessing:
    """What images must go through for a timm ``model``, made with ``arguments``; ``stated`` fields come first.

    Raises :class:`DataError` where mean or std are not one number a channel.
    """
    config = resolve_model_data_config(model)
    if size := arguments.get("img_size"):
        config["input_size"] = (config["input_size"][0], *((size, size) if isinstance(size, int) else size))
        config["crop_pct"] = 1.0  # timm's crop is meant for the size it was trained at
    config.update(stated)
    return Preprocessing.from_json(
        {name: config[name] for name in FIELDS}
        | {
            "input_size": tuple(config["input_size"]),
            "mean": per_channel("mean", config),
            "std": per_channel("std", config),
        }
    )


def per_channel(name: str, config: dict[str, Any]) -> tuple[float, ...]:
    """Means or standard deviations, one for each channel of ``config["input_size"]``."""
    try:
        values = tuple(float(value) for value in config[name])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} is {config[name]!r}, not one number a channel", f"give --{name} 0.5,0.5,0.5"
        ) from error
    channels = config["input_size"][0]
    if len(values) != channels:
        raise DataError(f"{name} has {len(values)} values for {channels} channels", f"give --{name} one a channel")
    if name == "std" and min(values) <= 0:
        raise DataError(f"std is {config[name]!r}: images are divided by it", "give values above 0")
    return values


def class_names(model: nn.Module) -> tuple[str, ...]:
    """ImageNet's class names where the classifier has ImageNet's size, else none."""
    subset = infer_imagenet_subset(model)
    if not subset:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_label_name(i) for i in range(classifier_rows(model)))
