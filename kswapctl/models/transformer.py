"""Load a detector or segmenter as transformers keeps it: a folder, or a repository of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from kswapctl.errors import DataError, NotFoundError, UsageError, WrongBaseError, first_line, nearest
from kswapctl.models.configured import per_channel
from kswapctl.models.families import FAMILIES, PREFIX, Family, adopt, arguments_of, configure, kind_of, make
from kswapctl.models.weights import FILES, in_full
from kswapctl.spec import ModelSpec, Preprocessing

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
USUAL: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""ImageNet's, which nearly all of these networks are fed with."""
SHAPED = {"height", "width"}
"""What may be told of a network: the size of its input. All else its configuration says."""
SIDE = 640
"""Height and width of the input where nothing says it."""


def is_folder(source: str) -> bool:
    """Whether ``source`` is a folder with a configuration of transformers."""
    return (Path(source) / CONFIG).is_file()


def is_repository(source: str) -> bool:
    """Whether ``source`` looks like ORG/NAME, and neither like a file's path nor like something on this disk."""
    path = Path(source)
    named = source.count("/") == 1 and ":" not in source and not source.startswith((".", "/"))
    return named and path.suffix.lower() not in FILES and not path.exists()


def load(
    source: str, classes: tuple[str, ...], stated: dict[str, Any], preprocessing: dict[str, Any], pretrained: bool
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The specification and tensors of ``source``; ``stated`` may give the input's ``height`` and ``width``."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = _config(source)
    if unknown := stated.keys() - SHAPED:
        raise UsageError(f"{source} says its {min(unknown)} itself", "of --model-arg it takes height and width")
    family = FAMILIES[config.model_type]
    architecture = PREFIX + config.model_type
    names = classes or tuple(config.id2label[index] for index in sorted(config.id2label))
    arguments = arguments_of(config)
    if getattr(config, "two_stage", False):
        raise UsageError(f"{source} is a two-stage Deformable DETR", "use one of a single stage, or RT-DETR")
    if pretrained:
        if len(config.id2label) != len(names):
            raise WrongBaseError(
                f"{source} has {len(config.id2label)} classes, but {len(names)} class names were given",
                "give one name a row",
            )
        built = configure(architecture, arguments, len(names))
        built.tie_word_embeddings = getattr(
            config, "tie_word_embeddings", False
        )  # tensors that are tied are saved once
        weights = _weights(source, family, built)
    else:
        weights = {k: v.detach().clone() for k, v in make(architecture, arguments, len(names)).state_dict().items()}
    fed = _preprocessing(source, config, stated, preprocessing)
    return ModelSpec(architecture, arguments, names, fed, family.form.task), weights


def _config(source: str) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise NotFoundError(
            f"{source} has no configuration that transformers reads ({first_line(error)})",
            "give a folder with config.json and model.safetensors, or the name of a repository",
        ) from error
    if config.model_type not in FAMILIES:
        raise UsageError(
            f"{source} is of the kind {config.model_type!r}, which kswapctl cannot change",
            nearest(config.model_type, FAMILIES),
        )
    return config


def _weights(source: str, family: Family, config: Any) -> dict[str, Tensor]:
    try:
        network, told = kind_of(family).from_pretrained(  # type: ignore[attr-defined]
            source, config=config, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the weights of {source} cannot be loaded ({first_line(error)})",
            "it needs a model.safetensors that fits its config.json; or say --no-pretrained",
        ) from error
    if told["mismatched_keys"]:
        name, stored, wanted = min(told["mismatched_keys"])
        raise WrongBaseError(
            f"{source}: {name} has the shape {tuple(stored)}, and by config.json {tuple(wanted)}",
            "correct config.json: its id2label names each class",
        )
    if told["missing_keys"]:
        raise WrongBaseError(
            f"{source} lacks {len(told['missing_keys'])} tensors, such as {min(told['missing_keys'])}",
            "it was saved for another task: save the whole network",
        )
    return in_full(adopt(network, family).state_dict())


def _preprocessing(source: str, config: Any, stated: dict[str, Any], preprocessing: dict[str, Any]) -> Preprocessing:
    """As the image processor says, but stretched to one size: boxes and masks then need no cutting."""
    said: dict[str, Any] = USUAL | _processor(source)
    if said.get("do_normalize") is False:
        said |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    height, width = _sides(said.get("size") or getattr(config, "image_size", None) or SIDE, source)
    height, width = stated.get("height", height), stated.get("width", width)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise UsageError(f"an input of {height} x {width} is none", "--model-arg height=480 --model-arg width=640")
    size = (3, height, width)
    config = {"input_size": size} | {k: preprocessing.get(k) or said[f"image_{k}"] for k in ("mean", "std")}
    return Preprocessing(
        input_size=size,
        mean=per_channel("mean", config),
        std=per_channel("std", config),
        interpolation="bilinear",
        crop_mode="squash",
    )


def _sides(size: Any, source: str) -> tuple[int, int]:
    """Height and width: of one number, of two, or of what names them, as repositories of all ages have it."""
    found = (size, size) if isinstance(size, int) else size
    if isinstance(size, dict):
        names = (("height", "width"), ("shortest_edge", "shortest_edge"), ("max_height", "max_width"))
        found = next(((size[h], size[w]) for h, w in names if size.get(h) and size.get(w)), ())
    if not (isinstance(found, list | tuple) and len(found) == 2 and all(isinstance(s, int) and s > 0 for s in found)):
        raise DataError(f"{PROCESSOR} of {source} has the size {size!r}", "name a height and a width")
    return found[0], found[1]


def _processor(source: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, PROCESSOR, _raise_exceptions_for_missing_entries=False)
        said = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{PROCESSOR} of {source} cannot be read ({first_line(error)})") from error
    if not isinstance(said, dict):
        raise DataError(f"{PROCESSOR} of {source} is no JSON object")
    return said
