"""What timm's configuration of a network says beyond its weights: preprocessing and ImageNet's class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from kswapctl.errors import DataError, first_line, nearest
from kswapctl.models.heads import classifier_rows
from kswapctl.spec import Preprocessing

FIELDS = [f.name for f in fields(Preprocessing)]
"""Of timm's configuration, what preprocessing needs."""
CHANNELS = (1, 3)
"""How many an image may have: grey, or red, green and blue."""
CHOICES = {
    "interpolation": ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"),
    "crop_mode": ("center", "squash", "border"),
}
"""What timm knows of these."""
SQUASH = "squash"
"""The only way to fit an image into the input of a detector or segmenter: all of it is kept."""


def preprocessing(model: nn.Module, arguments: Mapping[str, Any], stated: Mapping[str, Any]) -> Preprocessing:
    """What images must go through for a timm ``model``, made with ``arguments``; ``stated`` fields come first.

    Raises :class:`DataError` where mean or std are not one number a channel, and where the network takes no images of
    the stated size.
    """
    config = resolve_model_data_config(model)
    size = arguments.get("img_size") or config["input_size"][1:]
    size = (config["input_size"][0], *((size, size) if isinstance(size, int) else size))
    if size != tuple(config["input_size"]):
        config |= {"input_size": size, "crop_pct": 1.0}  # timm's crop is meant for the size it was trained at
    channels = arguments.get("in_chans", config["input_size"][0])
    if channels != config["input_size"][0]:  # as timm does it
        config["input_size"] = (channels, *config["input_size"][1:])
        config |= {name: (sum(config[name]) / len(config[name]),) * channels for name in ("mean", "std")}
    size = tuple(config["input_size"])
    config.update(stated)
    found = complete(config, "timm's configuration")
    if found.input_size != size:
        _check_taken(model, found.input_size)
    return found


def _check_taken(model: nn.Module, size: tuple[int, int, int]) -> None:
    training, weight = model.training, next(model.parameters())
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *size, dtype=weight.dtype, device=weight.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the network takes no images of the stated input_size {list(size)} ({first_line(error)})",
            "state the size that it is built for, or build it for this one: --model-arg img_size=N",
        ) from error
    finally:
        model.train(training)


def complete(config: Mapping[str, Any], where: str) -> Preprocessing:
    """Preprocessing from its fields; one that is missing or of another form is a :class:`DataError`."""
    said = {name: config[name] for name in FIELDS if name in config}
    for name in ("input_size", "mean", "std"):
        if name not in said:
            raise DataError(f"nothing says the {name} of {where}", "put its preprocessing into the file's metadata")
    size = said["input_size"]
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise DataError(f"{where} has the input_size {size!r}", "it is [channels, height, width], in pixels")
    if size[0] not in CHANNELS:
        raise DataError(f"{where} takes images of {size[0]} channels", "images have one or three")
    crop = said.get("crop_pct", 1.0)
    if not (isinstance(crop, int | float) and crop > 0):
        raise DataError(f"{where} has the crop_pct {crop!r}", "it is a share of the image, above 0")
    for name, known in CHOICES.items():
        if said.get(name, known[0]) not in known:
            raise DataError(f"{where} has the {name} {said[name]!r}", nearest(str(said[name]), known))
    per = {name: per_channel(name, said) for name in ("mean", "std")}
    return Preprocessing.from_json({**said, "input_size": tuple(size), **per})


def refuse_cut(preprocessing: Preprocessing, architecture: str) -> None:
    """Raise :class:`DataError` where images of a detector or segmenter would be cut."""
    if preprocessing.crop_mode != SQUASH:
        raise DataError(
            f"{architecture} is said to be fed with images cut to their {preprocessing.crop_mode}",
            f'boxes and masks are not cut: its metadata must say "crop_mode": "{SQUASH}"',
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
