"""One batch on several threads: the same outputs and gradients, with any room and however often they are asked for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from kswapctl import runtime
from kswapctl.evaluation.predict import batch_of
from kswapctl.models.threads import run_spread
from kswapctl.models.weights import Weights
from kswapctl.runtime import one_core_each, spread


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch has so many threads, and what runs there leaves it so."""
    with runtime.threads(count):
        yield
        assert torch.get_num_threads() == count


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


@pytest.mark.parametrize("room", [0, 1, 2000])
@pytest.mark.parametrize("grad", [False, True])
def test_rows_spread_over_threads_give_the_same_outputs_and_gradients(grad: bool, room: int) -> None:
    torch.manual_seed(0)
    module = network()
    inputs = torch.randn(70, 6)
    weight = torch.randn(8, 6, requires_grad=True)
    whole = torch.func.functional_call(module, {"0.weight": weight}, (inputs,))
    with threads(3), one_core_each(), torch.set_grad_enabled(grad):
        outputs = run_spread(torch.func.functional_call, module, {"0.weight": weight}, inputs, room)
    torch.testing.assert_close(outputs, whole)
    assert outputs.requires_grad == grad
    if grad:
        (expected,) = torch.autograd.grad(whole.square().sum(), weight)
        (found,) = torch.autograd.grad(outputs.square().sum(), weight)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("room", [0, 1])
def test_two_losses_can_be_walked_back_through_the_same_outputs(room: int) -> None:
    torch.manual_seed(0)
    module, inputs = network(), torch.randn(70, 6)
    weight = torch.randn(8, 6, requires_grad=True)
    whole = torch.func.functional_call(module, {"0.weight": weight}, (inputs,))
    with threads(2), one_core_each():
        outputs = run_spread(torch.func.functional_call, module, {"0.weight": weight}, inputs, room)
        for part in (slice(0, 30), slice(30, 70)):
            (found,) = torch.autograd.grad(outputs[part].square().sum(), weight, retain_graph=True)
            (expected,) = torch.autograd.grad(whole[part].square().sum(), weight, retain_graph=True)
            torch.testing.assert_close(found, expected)


class Held:
    """A tensor that a graph keeps for its way back."""

    def __init__(self, tensor: Tensor) -> None:
        """Keep it."""
        self.tensor = tensor


def test_what_the_way_back_needed_is_freed_after_it() -> None:
    weight = torch.randn(8, 6, requires_grad=True)
    kept: weakref.WeakSet[Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Held:
        kept.add(held := Held(tensor))
        return held

    def run(module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            return torch.func.functional_call(module, weights, (inputs,))

    with threads(2), one_core_each():
        loss = run_spread(run, network(), {"0.weight": weight}, torch.randn(70, 6)).sum()
        loss.backward(retain_graph=True)
        assert kept
        loss.backward()
    assert not kept


def test_no_thread_is_left_with_no_rows() -> None:
    """9 rows on two threads are 5 and 4; two at once, the third round has one row for one of them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), Heads(), nn.Flatten(), nn.Linear(8, 3))
    inputs = torch.randn(9, 6)
    weight = torch.randn(8, 6, requires_grad=True)
    seen: list[int] = []

    def run(module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(len(inputs))
        return torch.func.functional_call(module, weights, (inputs,))

    whole = torch.func.functional_call(module, {"0.weight": weight}, (inputs,))
    with threads(2), one_core_each():
        a_row = 4 * 8  # the inputs of the last layer
        outputs = run_spread(run, module, {"0.weight": weight}, inputs, 4 * a_row)
        seen.clear()
        (found,) = torch.autograd.grad(outputs.sum(), weight)
    assert sorted(seen) == [1, 2, 2, 2, 2]
    (expected,) = torch.autograd.grad(whole.sum(), weight)
    torch.testing.assert_close(found, expected)


class Heads(nn.Module):
    """Splits features as attention does; of no rows at all, -1 could be anything."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 2, 4) to the same, by way of (B, 2, 2, 2)."""
        return inputs.reshape(len(inputs), 2, 2, -1).reshape(inputs.shape)


def test_without_room_few_rows_are_walked_back_at_once() -> None:
    module = network()
    weight = torch.randn(8, 6, requires_grad=True)
    together: list[int] = []

    def run(module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            together.append(len(inputs))
        return torch.func.functional_call(module, weights, (inputs,))

    a_row = 4 * (8 + 8)  # the inputs of the activation and of the second layer; the images are there anyway
    for room, expected in ((70 * a_row, [1, 70]), (30 * a_row, [1, 30, 30, 10])):
        together.clear()
        with threads(1), one_core_each():
            run_spread(run, nn.Sequential(*module), {"0.weight": weight}, torch.randn(70, 6), room).sum().backward()
        assert together == expected


def test_spreading_keeps_the_order_and_passes_errors_on() -> None:
    with threads(2):
        assert spread(lambda n: n * n, range(7)) == [n * n for n in range(7)]
        with pytest.raises(ZeroDivisionError):
            spread(lambda n: 1 // n, [1, 0])


@pytest.mark.parametrize(("side", "images"), [(32, 128), (224, 16), (512, 3), (4096, 1)])
def test_fewer_large_images_run_at_once(side: int, images: int) -> None:
    assert batch_of(torch.empty(1, 3, side, side, device="meta")) == images
