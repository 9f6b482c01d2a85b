"""Every family of networks: what is adapted in it, and that cutting and folding compute the same."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kswapctl.errors import DataError, UsageError, WrongBaseError
from kswapctl.models.blocks import Block, choose_blocks, find_blocks
from kswapctl.models.building import create
from kswapctl.models.cut import cut
from kswapctl.models.heads import classifier_path
from kswapctl.models.lora import Adapter, Layer, Shape, compose, extract, fold, fresh_layers
from kswapctl.training.subject import Subject as Operated

SHAPE = Shape(4, 0.5)


@dataclass(frozen=True)
class Family:
    """One network, as small as its family allows, and what should be found in it."""

    architecture: str
    blocks: int
    layers: set[str]
    """Last parts of the adapted layers' paths, without the block's."""
    arguments: dict[str, Any] = field(default_factory=dict)
    size: int = 32


WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
MLP = {"mlp.fc1", "mlp.fc2"}
FAMILIES = {
    "ViT": Family("vit_tiny_patch16_224", 3, MLP, {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2}),
    "DeiT": Family("deit_tiny_patch16_224", 3, MLP, {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2}),
    "Swin": Family("swin_tiny_patch4_window7_224", 5, MLP, WINDOWS, 64),
    "Swin v2": Family("swinv2_tiny_window8_256", 5, MLP, WINDOWS, 64),
    "ConvNeXt": Family("convnext_atto", 12, MLP, {"dims": (8, 16, 24, 32)}),
    "ResNet-18": Family("resnet18", 8, {"conv1", "conv2"}, {"channels": (8, 16, 24, 32)}),
    "ResNet-50": Family("resnet50", 16, {"conv1", "conv3"}, {"channels": (8, 16, 24, 32)}),
    "EfficientNet": Family("efficientnet_b0", 16, {"conv_pw", "conv_pwl"}),
    "MobileNetV4": Family("mobilenetv4_conv_small_035", 15, {"conv", "pw_exp.conv", "pw_proj.conv"}),
    "Mixer": Family(
        "mixer_s32_224", 8, {"mlp_tokens.fc1", "mlp_tokens.fc2", "mlp_channels.fc1", "mlp_channels.fc2"},
        {"img_size": 64}, 64,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A built network with its blocks and three images."""

    family: Family
    model: nn.Module
    classifier: str
    blocks: tuple[Block, ...]
    images: Tensor

    def run(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = model(self.images)
        return outputs

    def layers(self) -> dict[str, Layer]:
        """Adapters that change the network."""
        layers = fresh_layers(self.model, self.blocks, SHAPE)
        for layer in layers.values():
            nn.init.normal_(layer.a, std=0.1)
            nn.init.normal_(layer.b, std=0.1)
        return layers

    def adapted(self) -> tuple[nn.Module, Adapter]:
        """The network with changed weights, and the adapters that changed it."""
        model, layers = copy.deepcopy(self.model), self.layers()
        for path, layer in layers.items():
            model.get_submodule(path).weight = nn.Parameter(layer.now().detach())
        return model, extract(layers, SHAPE, {})

    def operated(self, blocks: tuple[Block, ...]) -> Operated:
        """A copy of the network made ready for training on ``blocks``."""
        return Operated.prepare(copy.deepcopy(self.model), self.blocks, blocks, SHAPE)


def layers_of(blocks: tuple[Block, ...]) -> list[str]:
    return [layer for block in blocks for layer in block.layers]


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def subject(request: pytest.FixtureRequest) -> Subject:
    torch.manual_seed(0)
    family: Family = request.param
    model = create(family.architecture, family.arguments, classes=5).eval()
    for name, tensor in model.state_dict().items():  # as if trained: fresh residual branches are multiplied by zero
        if name.endswith(("weight", "gamma", "running_var")) and (tensor.ndim == 1 or not tensor.any()):
            nn.init.uniform_(tensor, 0.5, 1.5)
    path = classifier_path(model)
    return Subject(family, model, path, find_blocks(model, path), torch.randn(3, 3, family.size, family.size))


def test_the_blocks_are_the_residual_blocks_and_their_dense_layers(subject: Subject) -> None:
    found = {layer.removeprefix(b.name + ".") for b in subject.blocks for layer in b.layers}
    assert len(subject.blocks) == subject.family.blocks
    assert found == subject.family.layers


def test_no_layer_of_attention_squeeze_excite_stem_or_classifier_is_adapted(subject: Subject) -> None:
    parts = {part for layer in layers_of(subject.blocks) for part in layer.split(".")}
    forbidden = {
        "attn",
        "se",
        "rel_pos",
        "cpb_mlp",
        "downsample",
        "patch_embed",
        "conv_stem",
        "conv_head",
        "head",
        "fc",
    }
    assert not parts & forbidden
    assert subject.classifier not in layers_of(subject.blocks)


def test_no_layer_is_in_two_blocks_and_blocks_stand_in_the_order_of_the_network(subject: Subject) -> None:
    layers, order = layers_of(subject.blocks), [name for name, _ in subject.model.named_modules()]
    assert len(layers) == len(set(layers))
    assert layers == sorted(layers, key=order.index)


def test_a_network_made_ready_computes_what_it_did(subject: Subject) -> None:
    for place in (0, 1, -1):
        operated = subject.operated(subject.blocks[place:])
        with torch.no_grad():
            outputs = operated.forward(operated.below(subject.images))[1]
        torch.testing.assert_close(outputs, subject.run(subject.model))


def test_only_the_adapters_of_the_chosen_blocks_are_trainable(subject: Subject) -> None:
    last = subject.blocks[-1:]
    operated = subject.operated(last)
    assert list(operated.groups) == [last[0].name]
    assert len(operated.groups[last[0].name]) == 2 * len(last[0].layers)
    assert not any(p.requires_grad for p in operated.model.parameters())


def test_lifting_the_cut_drops_the_first_blocks_and_changes_nothing(subject: Subject) -> None:
    operated = subject.operated(subject.blocks)
    with torch.no_grad():
        activations = operated.below(subject.images)
        before = operated.forward(activations)[1]
        between = operated.lift(1)
        assert torch.equal(operated.forward(between(activations))[1], before)
    assert list(operated.groups) == [b.name for b in subject.blocks[1:]]


def test_folding_computes_what_the_adapted_network_computes(subject: Subject) -> None:
    adapted, adapter = subject.adapted()
    folded = copy.deepcopy(subject.model)
    folded.load_state_dict(fold(subject.model.state_dict(), adapter))
    expected = subject.run(adapted)
    assert not torch.allclose(expected, subject.run(subject.model), rtol=1e-2)
    torch.testing.assert_close(subject.run(folded), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_two_halves_of_a_cut_compute_what_the_whole_does(subject: Subject) -> None:
    adapted, _ = subject.adapted()
    names = {b.name for b in subject.blocks} | {subject.classifier}
    whole = subject.run(adapted)
    for place in (0, 1, -1):
        parts = cut(adapted, names, subject.blocks[place].name)
        assert parts is not None
        below, above = parts
        with torch.no_grad():
            assert torch.equal(above(below(subject.images)), whole)


def test_nothing_adapted_lies_below_the_cut(subject: Subject) -> None:
    operated = subject.operated(subject.blocks[-1:])
    activations = operated.below(subject.images)
    assert not activations.requires_grad
    operated.forward(activations)[1].sum().backward()
    ups = [layer.b for layer in operated.layers.values()]
    assert ups
    assert all(b.grad is not None and b.grad.abs().sum() > 0 for b in ups)


def test_composing_two_adapters_is_folding_one_after_the_other(subject: Subject) -> None:
    base = subject.model.state_dict()
    (_, one), (_, two) = subject.adapted(), subject.adapted()
    composed, folded = compose(base, [one, two]), fold(fold(base, one), two)
    assert all(torch.equal(composed[k], folded[k]) for k in base)


def test_the_last_blocks_are_those_nearest_the_classifier(subject: Subject) -> None:
    assert choose_blocks(subject.blocks, "all") == subject.blocks
    assert choose_blocks(subject.blocks, "last:2") == subject.blocks[-2:]


@pytest.mark.parametrize("choice", ["last:0", "last:99", "first:2", "last:", "", "last:-1"])
def test_a_choice_of_blocks_that_names_none_is_refused(choice: str) -> None:
    blocks = (Block("a", ("a.x",)), Block("b", ("b.x",)))
    with pytest.raises(UsageError, match="names no blocks") as raised:
        choose_blocks(blocks, choice)
    assert "last:1 .. last:2" in raised.value.hint


class Flat(nn.Module):
    """A network whose only dense layer is its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, groups=3)
        self.head = nn.Linear(3, 2)


def test_a_network_without_layers_to_adapt_is_refused() -> None:
    with pytest.raises(DataError, match="no linear or pointwise layer to adapt in Flat"):
        find_blocks(Flat(), "head")


@pytest.mark.parametrize("architecture", ["deit_tiny_distilled_patch16_224"])
def test_a_network_with_two_classifiers_is_refused(architecture: str) -> None:
    model = create(architecture, {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}, classes=3)
    with pytest.raises(DataError, match="no single linear classifier"):
        classifier_path(model)


def test_a_network_that_cannot_be_traced_is_not_cut() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if x.sum() > 0 else x

    assert cut(Branching(), {"block"}, "block") is None


def test_a_network_whose_images_cross_the_cut_is_not_cut() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(x)) + x

    assert cut(Skipping(), {"block"}, "block") is None


def test_an_adapter_of_another_network_is_refused(subject: Subject) -> None:
    _, adapter = subject.adapted()
    with pytest.raises(WrongBaseError, match="which the model does not have"):
        fold({"head.weight": torch.zeros(2, 2)}, adapter)
