"""Load a pretrained checkpoint: a timm name, a hub repository, or a local file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from kswapctl.errors import DataError, NotFoundError, UnsafeInputError, UsageError, WrongBaseError, nearest
from kswapctl.models import configured, transformer
from kswapctl.models.building import FETCHING, build, check_fit, create, refuse_unsafe
from kswapctl.models.dense import Dense
from kswapctl.models.families import is_dense, make
from kswapctl.models.heads import classifier_path, classifier_rows, head_paths, resize, spare_rows
from kswapctl.models.weights import FILES, PICKLES, Weights, check_finite, in_full, read, read_pickle
from kswapctl.spec import ModelSpec

STATED = {
    "architecture": str,
    "model": str,
    "arguments": dict,
    "model_args": dict,
    "classes": list,
    "preprocessing": dict,
}
"""What a file's metadata may say of it, ours or timm's, and in which form."""


@dataclass(frozen=True)
class Description:
    """What the user says about a checkpoint that the checkpoint may not say itself."""

    architecture: str = ""
    """timm's model name."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``timm.create_model``, e.g. ``{"img_size": 40}``."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the classifier's rows."""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`Preprocessing` that differ from the architecture's own."""
    pretrained: bool = True
    """For a timm name: load its pretrained weights (else random ones)."""
    allow_pickle: bool = False
    """Open a ``.pth`` file, with the restricted unpickler."""
    else_classes: tuple[str, ...] = ()
    """Class names in the order of the classifier's rows, where a checkpoint does not name them itself."""


@dataclass(frozen=True)
class Checkpoint:
    """A network's specification and its tensors."""

    spec: ModelSpec
    weights: Weights


def load(source: str, description: Description) -> Checkpoint:
    """Load ``source`` as its form says.

    A file by its suffix, a folder or ORG/NAME of transformers, ``hf-hub:org/name`` of timm, or a timm name. Published
    checkpoints have class names that no option could tell: blanks at their ends are cut off, and where it calls
    several rows the same (``N/A`` of COCO's unused numbers, the bird and the machine ``crane``) each gets its number.
    """
    checkpoint = _open(source, description)
    names = tuple(str(name).strip() for name in checkpoint.spec.classes)
    if not description.classes:
        count = Counter(names)
        names = tuple(name if count[name] == 1 else f"{name} {row}" for row, name in enumerate(names))
    _check_names(names)
    return replace(checkpoint, spec=replace(checkpoint.spec, classes=names))


def _open(source: str, description: Description) -> Checkpoint:
    path = Path(source)
    if transformer.is_folder(source) or transformer.is_repository(source):
        return _load_transformer(source, description)
    if path.suffix.lower() in FILES and not description.pretrained:
        raise UsageError(f"{path.name} is nothing but weights", "leave --no-pretrained away")
    if path.suffix.lower() == ".safetensors":
        return _load_safetensors(path, description)
    if path.suffix.lower() in PICKLES:
        return _load_pickle(path, description)
    if path.is_file():
        raise DataError(f"cannot tell what {source} is", "name it .safetensors, or .pth for a pickled state dict")
    if source.startswith("hf-hub:") or timm.is_model(source):
        return _load_timm(source, description)
    if path.is_dir():
        raise DataError(
            f"{source} holds no config.json and model.safetensors", "a folder to add has both; --data names images"
        )
    beside = [str(f) for f in path.parent.glob("*") if f.suffix.lower() in FILES]
    raise NotFoundError(
        f"no timm model, hub repository or file is called {source!r}",
        nearest(source, [*beside, *timm.list_models()]) + " For the Hub write hf-hub:org/name",
    )


def _load_transformer(source: str, description: Description) -> Checkpoint:
    _refuse_architecture(source, description)
    spec, weights = transformer.load(
        source, description.classes, description.arguments, description.preprocessing, description.pretrained
    )
    check_finite(weights, source)
    return Checkpoint(spec, weights)


def _refuse_architecture(source: str, description: Description) -> None:
    if description.architecture:
        raise UsageError(f"{source} says itself which network it is", "leave --architecture away")


def _load_timm(source: str, description: Description) -> Checkpoint:
    _refuse_architecture(source, description)
    hub = source.startswith("hf-hub:")
    rows = description.arguments.get("num_classes")
    description = replace(description, arguments={k: v for k, v in description.arguments.items() if k != "num_classes"})
    refuse_unsafe("", description.arguments)
    # another number of classes than the pretrained one would make timm draw a classifier of random weights, in silence
    if description.pretrained and rows is not None:
        raise UsageError(f"the pretrained classifier of {source} keeps its rows", "learn other classes afterwards")
    classes = None if description.pretrained else len(description.classes) or rows
    model = create(source, description.arguments, classes, pretrained=description.pretrained)
    config = cast("dict[str, Any]", model.pretrained_cfg)
    names = description.classes or tuple(config.get("label_names") or ()) or configured.class_names(model)
    names = names or description.else_classes or tuple(f"class_{i}" for i in range(classifier_rows(model)))
    if hub:
        description = replace(description, arguments={**_stated_arguments(source), **description.arguments})
    spec = _spec(model, str(config["architecture"]) if hub else source, description, names)
    weights = in_full(model.state_dict())
    check_finite(weights, source)
    return Checkpoint(_rebuilt(model, spec, weights) if hub else spec, weights)


def _stated_arguments(source: str) -> dict[str, Any]:
    """What a repository of the Hub says that timm builds its network with."""
    from timm.models import load_model_config_from_hf

    _, _, arguments = load_model_config_from_hf(source.removeprefix("hf-hub:"))
    return {k: v for k, v in (arguments or {}).items() if k not in FETCHING}


def _rebuilt(model: nn.Module, spec: ModelSpec, weights: Weights) -> ModelSpec:
    """``spec``, if need be with the network's size as an argument: what it builds computes the same to the bit."""
    images = torch.rand(1, *spec.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or spec.preprocessing.input_size[1:]
    sized = replace(spec, arguments={**spec.arguments, "img_size": list(size)})
    with torch.no_grad():
        expected = model.float().eval()(images)
        for tried in (spec, sized):
            try:
                if torch.equal(expected, build(tried, weights)(images)):
                    return tried
            except (UsageError, WrongBaseError):  # it does not fit, or takes no such argument
                continue
    raise WrongBaseError(
        f"{spec.architecture} with {spec.arguments} is not the network that was loaded",
        "say what its repository says otherwise with --model-arg",
    )


def _load_safetensors(path: Path, description: Description) -> Checkpoint:
    weights, metadata = read(path)
    _check_stated(metadata, path.name)
    architecture = description.architecture or metadata.get("architecture") or metadata.get("model") or ""
    if not architecture:
        raise UsageError(f"{path.name} does not say which network it is for", "give --architecture (a timm name)")
    arguments = dict(metadata.get("arguments") or metadata.get("model_args") or {})
    arguments.pop("num_classes", None)
    stated = metadata.get("preprocessing", metadata)
    preprocessing = {k: stated[k] for k in configured.FIELDS if k in stated}
    described = replace(
        description,
        architecture=architecture,
        arguments={**arguments, **description.arguments},
        classes=description.classes or tuple(metadata.get("classes", ())) or description.else_classes,
        preprocessing={**preprocessing, **description.preprocessing},
    )
    return _from_weights(weights, described, path.name)


def _check_stated(metadata: dict[str, Any], where: str) -> None:
    for name, kind in STATED.items():
        if not isinstance(metadata.get(name, kind()), kind):
            raise DataError(f"{where} states its {name} as {metadata[name]!r}", "correct the file's metadata")
    for name in metadata.get("classes", ()):
        if not isinstance(name, str):
            raise DataError(f"{where} names a class {name!r}", "correct the file's metadata: names are text")


def _load_pickle(path: Path, description: Description) -> Checkpoint:
    if not description.allow_pickle:
        raise UnsafeInputError(
            f"{path.name} is a pickle, which can hold code",
            "convert it to .safetensors, or say --allow-pickle",
        )
    weights = read_pickle(path)
    if not description.architecture:
        raise UsageError(f"{path.name} does not say which network it is for", "give --architecture (a timm name)")
    named = replace(description, classes=description.classes or description.else_classes)
    return _from_weights(weights, named, path.name)


def _from_weights(weights: Weights, description: Description, where: str) -> Checkpoint:
    refuse_unsafe(description.architecture, description.arguments)
    dense = is_dense(description.architecture)
    builder = make if dense else create
    model = builder(description.architecture, description.arguments, len(description.classes) or None)
    path = classifier_path(model)
    rows = weights.get(f"{path}.weight")
    if rows is None:
        raise WrongBaseError(
            f"{where} has no classifier {path}.weight, which {description.architecture} needs",
            "check --architecture",
        )
    names = description.classes
    known = len(rows) - spare_rows(model)
    if names and len(names) != known:
        raise WrongBaseError(
            f"{where} has {known} classes, but {len(names)} class names were given", "give one name a row"
        )
    for head in head_paths(model):
        resize(model, head, len(rows))
    check_fit(model, weights, description.architecture)
    if not names:
        raise UsageError(f"{where} does not name its {known} classes", "give --classes-file, or --data DIR")
    return Checkpoint(_spec(model, description.architecture, description, names), in_full(weights))


def _spec(model: nn.Module, architecture: str, description: Description, names: Sequence[str]) -> ModelSpec:
    rows = classifier_rows(model)
    if len(names) != rows:
        raise WrongBaseError(f"{architecture} has {rows} classes, but {len(names)} names", "give one name a row")
    if isinstance(model, Dense):
        stated = configured.complete({"crop_mode": configured.SQUASH} | description.preprocessing, architecture)
        configured.refuse_cut(stated, architecture)
        return ModelSpec(architecture, description.arguments, tuple(names), stated, model.task)
    return ModelSpec(
        architecture,
        description.arguments,
        tuple(names),
        configured.preprocessing(model, description.arguments, description.preprocessing),
    )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name or any(c in name for c in "\0\n"):
            raise DataError(f"a class is called {name!r}", "name the rows anew with --classes-file")
    if len(set(names)) != len(names):
        twice = next(n for n in names if list(names).count(n) > 1)
        raise DataError(f"two classes are called {twice!r}", "class names must differ")
