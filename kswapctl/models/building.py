"""Build the network of a specification, and see that weights fit it."""

from __future__ import annotations

import warnings
from typing import Any

import timm
from torch import Tensor, nn

from kswapctl.errors import (
    DataError,
    NotFoundError,
    UnsafeInputError,
    UsageError,
    WrongBaseError,
    counted,
    first_line,
    nearest,
)
from kswapctl.models.families import find_family, is_dense, make
from kswapctl.models.heads import head_paths, resize
from kswapctl.models.weights import Weights
from kswapctl.spec import ModelSpec

FETCHING = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_custom_load", "checkpoint_path", "cache_dir",
    "num_classes", "scriptable", "exportable", "no_jit", "features_only",
}  # fmt: skip
"""Arguments of ``timm.create_model`` that are about files or the form of the network, never about its shape."""


def build(spec: ModelSpec, weights: Weights | None = None) -> nn.Module:
    """The network of ``spec`` in eval mode, on the CPU, with ``weights`` where given.

    The classifier takes as many rows as the weights have. Tensors that are missing, left over or of another
    shape are a :class:`WrongBaseError`.
    """
    refuse_unsafe(spec.architecture, spec.arguments)
    model: nn.Module
    if is_dense(spec.architecture):
        model = make(spec.architecture, spec.arguments, len(spec.classes))
    else:
        model = create(spec.architecture, spec.arguments, len(spec.classes))
    if weights is None:
        return model.eval()
    for path in head_paths(model):
        rows = weights.get(f"{path}.weight")
        if rows is not None:
            resize(model, path, len(rows))
    check_fit(model, weights, spec.architecture)
    model.load_state_dict(weights)
    return model.eval()


def class_rows(architecture: str, classifier: Tensor | None) -> int:
    """Classes that a classifier's weight (K, D) has rows for; 0 where there is none."""
    if classifier is None:
        return 0
    return len(classifier) - (find_family(architecture).spare if is_dense(architecture) else 0)


def create(architecture: str, arguments: dict[str, Any], classes: int | None, pretrained: bool = False) -> nn.Module:
    """``timm.create_model``, with what it raises turned into one clear line."""
    extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm repeats its own deprecations on every construction
            return timm.create_model(architecture, pretrained=pretrained, **extra, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"timm cannot build {architecture} with {arguments}: {error}", "check --model-arg") from error
    except RuntimeError as error:
        if "nknown model" in str(error):
            raise NotFoundError(
                f"timm knows no model {architecture!r}", nearest(architecture, timm.list_models())
            ) from error
        raise DataError(
            f"{architecture}: {first_line(error)}", "try --no-pretrained, or a local .safetensors"
        ) from error
    except OSError as error:
        raise NotFoundError(
            f"the pretrained weights of {architecture} cannot be fetched ({first_line(error)})",
            "check the name and the network, or use a local .safetensors, or --no-pretrained",
        ) from error


def refuse_unsafe(architecture: str, arguments: dict[str, Any]) -> None:
    """A file may name a network of timm's or transformers' and its shape; not a repository or file for them to open."""
    if ":" in architecture or "/" in architecture:
        raise UnsafeInputError(f"{architecture[:80]!r} is a place to fetch from, not a network", "give --architecture")
    for name in sorted(FETCHING & arguments.keys()):
        raise UnsafeInputError(f"the argument {name} would make timm open another file", "leave it out")


def check_fit(model: nn.Module, weights: Weights, architecture: str) -> None:
    """Every tensor of the model is there, of its shape, and none is left over; else :class:`WrongBaseError`."""
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in weights.items()}
    wrong = [f"{k} is {given[k]}, not {expected[k]}" for k in expected if k in given and given[k] != expected[k]]
    missing = [f"{k} is missing" for k in expected if k not in given]
    extra = [f"{k} is left over" for k in given if k not in expected]
    problems = wrong + missing + extra
    if problems:
        off = counted(len(problems), "tensor")
        raise WrongBaseError(
            f"the weights do not fit {architecture}: {off} off ({'; '.join(problems[:3])})",
            "check --architecture, --model-arg and the number of classes",
        )
