"""Where a network can be adapted: its feed-forward layers, grouped by block, found from the modules themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kswapctl.errors import DataError, UsageError
from kswapctl.models.dense import Dense

FEED_FORWARD = re.compile(r"(mlp|ffn)")
"""How timm names the feed-forward part of a block: mlp, mlp_tokens, mlp_channels, ffn."""
TRANSFORMERS = re.compile(
    r"(.+?)\.((mlp\.)?fc[12]|intermediate\.dense|output\.dense|linear_(?:c|projections)\.\d+\.proj|linear_fuse)"
)
"""How transformers names the feed-forward layers of its encoders, decoders and backbones, after the block's path."""
CONVOLUTIONAL = re.compile(r"(.+\.(?:stages\.\d+\.layers|(?:fpn|pan)_blocks)\.\d+)\..*conv(?:olution)?")
"""How it names the convolutions of residual and of fusion blocks, after the block's path."""
BOXES = re.compile(r"(?:.+\.)?(?:bbox_embed\.(\d+)|bbox_predictor|(enc)_bbox_head)\.layers\.\d+")
"""How it names the layers of what gives boxes: of a decoder layer, of the last layer, or of the encoder."""
AUTO = "auto"
"""The choice of blocks that is left to the gradient."""
NOT_FEED_FORWARD = {"attn", "rel_pos", "se"}
"""Parts that hold small mlp's of their own: position biases, squeeze-and-excite."""


@dataclass(frozen=True)
class Block:
    """One group of the group-sparse penalty: a residual block and its adapted layers."""

    name: str
    """Path of the block's module."""
    layers: tuple[str, ...]
    """Paths of the layers adapted in it, in the order of the module tree."""


def find_blocks(model: nn.Module, classifier: str) -> tuple[Block, ...]:
    """The blocks of ``model`` with their adaptable layers, in the order of the module tree.

    Feed-forward layers where the network has them (transformers, mixers, ConvNeXt), else the pointwise
    convolutions of its blocks (EfficientNet, MobileNet, ResNet-50), else their dense ones (ResNet-18).
    """
    if isinstance(model, Dense):
        return _blocks_of_transformers(model)
    modules = dict(model.named_modules())
    candidates = [
        name
        for name, module in modules.items()
        if _is_dense(module) and "." in name and name != classifier and not NOT_FEED_FORWARD & set(name.split("."))
    ]
    feed_forward = [n for n in candidates if any(FEED_FORWARD.match(part) for part in n.split(".")[1:])]
    in_blocks = [n for n in candidates if _block_of(n, modules) and "downsample" not in n]
    pointwise = [n for n in in_blocks if _is_pointwise(modules[n])]
    layers = feed_forward or (pointwise if _is_most(pointwise, in_blocks, modules) else in_blocks)
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(_block_of(layer, modules) or layer.rpartition(".")[0], []).append(layer)
    if not groups:
        raise DataError(
            f"found no linear or pointwise layer to adapt in {type(model).__name__}",
            "this architecture cannot be changed with adapters",
        )
    return tuple(Block(name, tuple(names)) for name, names in groups.items())


def _blocks_of_transformers(model: Dense) -> tuple[Block, ...]:
    """One block a layer of encoder, decoder or backbone, in the order they compute, with what gives its boxes.

    Of a network with little but convolutions before its decoder every layer is adapted. What its decoder attends to
    decides how tight the boxes of a new class are.
    """
    patterns = [TRANSFORMERS, CONVOLUTIONAL] if model.all_layers else [TRANSFORMERS]
    groups: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        found = next(filter(None, (pattern.fullmatch(name) for pattern in patterns)), None)
        if found and _is_dense(module) and not found[1].endswith("attention"):
            groups.setdefault(found[1], []).append(name)
    decoder = [name for name in groups if ".decoder." in name]
    below = [name for name in groups if name not in decoder]
    for layer in _box_layers(model):
        number, encoder = layer.groups()
        block = below[-1] if encoder else decoder[int(number)] if number else next(reversed(groups))
        groups[block].append(layer[0])
    blocks = tuple(Block(name, tuple(layers)) for name, layers in groups.items())
    return with_all_layers(model, blocks) if model.all_layers else blocks


def _box_layers(model: nn.Module) -> list[re.Match[str]]:
    """Layers that give boxes, as those of a new class may have sizes that no known one has; not what several share."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found = [BOXES.fullmatch(alone) for alone, *others in names.values() if not others]
    return [match for match in found if match]


def choose_blocks(blocks: tuple[Block, ...], choice: str) -> tuple[Block, ...]:
    """The blocks that ``choice`` names: ``last:N`` are the N nearest the classifier, ``auto`` begins with all."""
    if choice in {"all", AUTO}:
        return blocks
    match = re.fullmatch(r"last:(\d+)", choice)
    if not match or not 1 <= int(match[1]) <= len(blocks):
        raise UsageError(f"--blocks {choice!r} names no blocks", f"use all, auto, or last:1 .. last:{len(blocks)}")
    return blocks[-int(match[1]) :]


def with_all_layers(model: nn.Module, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The same blocks with every linear layer and ungrouped convolution in them, attention too, but no classifier."""
    modules = {name: module for name, module in model.named_modules() if _is_dense(module)}
    heads = model.class_heads if isinstance(model, Dense) else ()
    inside = {b.name: [n for n in modules if n.startswith(f"{b.name}.") and n not in heads] for b in blocks}
    return tuple(Block(b.name, tuple(dict.fromkeys([*inside[b.name], *b.layers]))) for b in blocks)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _is_most(pointwise: list[str], layers: list[str], modules: dict[str, nn.Module]) -> bool:
    """Whether the pointwise layers reach at least half of the blocks."""
    reached = {_block_of(n, modules) for n in pointwise}
    return 2 * len(reached) >= len({_block_of(n, modules) for n in layers})


def _block_of(layer: str, modules: dict[str, nn.Module]) -> str:
    """The path of the block that holds ``layer``: the deepest numbered or block-like module above it."""
    parts = layer.split(".")[:-1]
    feed_forward = next((i for i, part in enumerate(parts) if i and FEED_FORWARD.match(part)), len(parts))
    for end in range(feed_forward, 0, -1):
        path = ".".join(parts[:end])
        kind = type(modules[path]).__name__.lower()
        if end > 1 and (parts[end - 1].isdigit() or kind.endswith(("block", "bottleneck"))):
            return path
    return ""
