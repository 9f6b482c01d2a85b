"""Register a pretrained checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from kswap_registry import Model, Registry, creation

from kswapctl.data.sources import open_source
from kswapctl.models.blocks import find_blocks
from kswapctl.models.building import build
from kswapctl.models.checkpoint import Checkpoint, Description, load
from kswapctl.models.heads import classifier_path
from kswapctl.models.weights import fingerprint, write
from kswapctl.operations.versions import BASE_FILE
from kswapctl.tasks import TASKS


def add_model(
    registry: Registry, name: str, source: str, description: Description, data: str = "", command: str = ""
) -> Model:
    """Load ``source`` and register it as ``name``; ``data`` names its classes where it does not itself.

    What is kept: architecture and arguments, class names, preprocessing, the blocks that can be adapted, the
    tensors and their hash.
    """
    if data:
        opened = open_source(data)
        data = opened.name
        named = description.classes or (() if description.pretrained else opened.classes)
        description = dataclasses.replace(description, classes=named, else_classes=opened.classes)
    checkpoint = load(source, description)
    if data:
        opened.check_marks(TASKS[checkpoint.spec.task].marks)
    return register(registry, name, source, checkpoint, data, command)


def register(
    registry: Registry, name: str, source: str, checkpoint: Checkpoint, data: str = "", command: str = ""
) -> Model:
    """Register a loaded checkpoint as ``name``."""
    spec = describe(checkpoint, data)
    with creation.scratch(registry.folder) as folder:
        file = folder / BASE_FILE
        write(checkpoint.weights, file, checkpoint.spec.to_json())
        return registry.add_model(
            name,
            command=command,
            task=checkpoint.spec.task,
            source=source,
            spec=spec,
            classes=list(checkpoint.spec.classes),
            fingerprint=fingerprint(checkpoint.weights),
            files={BASE_FILE: file},
        )


def describe(checkpoint: Checkpoint, data: str) -> dict[str, Any]:
    """What the registry says of a checkpoint: how to build and feed it, and what can be adapted in it."""
    network = build(checkpoint.spec, checkpoint.weights)
    blocks = find_blocks(network, classifier_path(network))
    return checkpoint.spec.to_json() | {
        "classifier": classifier_path(network),
        "blocks": [{"name": b.name, "layers": list(b.layers)} for b in blocks],
        "parameters": sum(t.numel() for t in checkpoint.weights.values()),
        "data": data,
    }
