"""Detectors and segmenters of transformers: which there are, what their configurations say, and where they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from kswapctl.errors import UnsafeInputError, UsageError, nearest
from kswapctl.models.dense import Boxes, Dense, MaskScores, PixelScores

PREFIX = "transformers."
"""What the name of an architecture begins with where transformers builds it."""
NESTED = "__"
"""Stands between the name of an inner configuration and the names in it."""
UNSAID = {
    "architectures", "backbone", "dtype", "id2label", "label2id", "num_labels", "torch_dtype", "transformers_version",
    "tie_word_embeddings", "use_pretrained_backbone",
}  # fmt: skip
"""What a configuration says that is no part of the network's shape, or is set here."""
TIMM = "timm_backbone"
"""The kind of a backbone that timm builds, by the name in its ``backbone``."""
ALWAYS: dict[str, dict[str, Any]] = {
    "rt_detr": {"num_denoising": 0},  # an embedding of class names for training, which nothing reads afterwards
    "deformable_detr": {"two_stage": False},
}
"""What is set whatever a configuration says."""


@dataclass(frozen=True)
class Family:
    """One kind of network of transformers."""

    network: str
    """Name of the class that answers."""
    config: str
    """Name of its configuration's class."""
    form: type[Dense]
    """How its answers are read."""
    head: str
    """Path of the classifier that decides; ``*`` stands for each of several layers, of which the last decides."""
    score: str = ""
    """Path of a classifier that chooses where to look."""
    spare: int = 0
    """Rows behind the classes: one for "no object", or none."""
    all_layers: bool = False
    """Whether every layer of its blocks is adapted, convolutions and attention too, not only the feed-forward ones."""


FAMILIES = {
    "deformable_detr": Family("DeformableDetrForObjectDetection", "DeformableDetrConfig", Boxes, "class_embed.*"),
    "detr": Family("DetrForObjectDetection", "DetrConfig", Boxes, "class_labels_classifier", spare=1),
    "mask2former": Family(
        "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", MaskScores, "class_predictor", spare=1
    ),
    "rt_detr": Family(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        Boxes,
        "model.decoder.class_embed.*",
        "model.enc_score_head",
        all_layers=True,
    ),
    "segformer": Family("SegformerForSemanticSegmentation", "SegformerConfig", PixelScores, "decode_head.classifier"),
    "yolos": Family("YolosForObjectDetection", "YolosConfig", Boxes, "class_labels_classifier.layers.2", spare=1),
}
"""By transformers' ``model_type``."""


def is_dense(architecture: str) -> bool:
    """Whether ``architecture`` is built by transformers."""
    return architecture.startswith(PREFIX)


def find_family(architecture: str) -> Family:
    """The family that an architecture names; another is an error with the nearest ones."""
    kind = architecture.removeprefix(PREFIX)
    if kind not in FAMILIES:
        raise UsageError(f"kswapctl does not know networks of the kind {kind!r}", nearest(kind, FAMILIES))
    return FAMILIES[kind]


def arguments_of(config: Any) -> dict[str, Any]:
    """What a configuration says other than its class would by itself, flat."""
    return _flat(config.to_diff_dict())


def make(architecture: str, arguments: Mapping[str, Any], classes: int | None) -> Dense:
    """A network of random weights in eval mode; nothing is fetched."""
    family = find_family(architecture)
    network: Any = kind_of(family)(configure(architecture, arguments, classes or 1))
    return adopt(network, family)


def configure(architecture: str, arguments: Mapping[str, Any], classes: int) -> Any:
    """The configuration that ``arguments`` describe."""
    kind = architecture.removeprefix(PREFIX)
    family = find_family(architecture)
    for name in arguments:
        if name.rpartition(NESTED)[2] in UNSAID and not _is_timm_backbone(name, arguments):
            raise UnsafeInputError(f"the argument {name} would make transformers open another file", "leave it out")
    values = _nested(arguments) | ALWAYS.get(kind, {})
    if "backbone_config" in values:
        values["use_timm_backbone"] = False
    names = {index: f"class_{index}" for index in range(classes)}
    try:
        config = getattr(transformers, family.config)(
            **values, id2label=names, label2id={name: index for index, name in names.items()}
        )
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise UsageError(f"transformers cannot build {kind} with {dict(arguments)}: {error}") from error
    config.tie_word_embeddings = False  # else PEFT asks a detector for its word embeddings
    return config


def _is_timm_backbone(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an argument names a network of timm's, which is built and not fetched."""
    above, _, last = name.rpartition(NESTED)
    kind, value = arguments.get(f"{above}{NESTED}model_type"), str(arguments[name])
    return last == "backbone" and kind == TIMM and ":" not in value and "/" not in value and timm.is_model(value)


def kind_of(family: Family) -> type[nn.Module]:
    """The class of transformers, which also reads its own answers our way."""
    base = getattr(transformers, family.network)
    return type(family.network, (family.form, base), {"__module__": base.__module__})


def adopt(network: Any, family: Family) -> Dense:
    """Tell a network where its classifiers are."""
    heads = [family.score] if family.score else []
    if "*" in family.head:
        place = family.head.removesuffix(".*")
        heads += [f"{place}.{index}" for index in range(len(network.get_submodule(place)))]
    else:
        heads.append(family.head)
    if hasattr(network, "criterion"):
        network.criterion = None  # for training its own way; its buffers count classes
    network.class_heads = tuple(heads)
    network.spare = family.spare
    network.all_layers = family.all_layers
    adopted: Dense = network.eval()
    return adopted


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside_timm = name == "backbone" and values.get("model_type") == TIMM
        if name.startswith("_") or (name in UNSAID and not inside_timm) or (name == "model_type" and not above):
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}{NESTED}")
        elif value is not None:
            flat[f"{above}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(NESTED)
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
