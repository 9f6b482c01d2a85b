"""Erasure: its distance by hand, and the features along the depth that it works on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kswapctl.demo.train import SPEC
from kswapctl.methods.erase import Forget, Part, _fit
from kswapctl.models.blocks import find_blocks
from kswapctl.models.building import build
from kswapctl.models.depths import blocks_at, pooled
from kswapctl.models.lora import Shape
from kswapctl.runtime import seed_everything
from kswapctl.training.subject import Subject


def test_the_distance_counts_what_was_erased_once_more() -> None:
    """Missed by (3, 4): 25 over a spread of 50, and 0.1 times 2 * 4 squared along the second axis."""
    part = Part(lambda f: f, torch.tensor([[0.0, 2.0]]), torch.tensor(50.0), torch.tensor([1.0, 1.0]))
    features, before = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert part.distance(features, before, push=False, focus=0.1).item() == pytest.approx(0.5 + 6.4)
    assert part.distance(features, before, push=True, focus=0.0).item() == pytest.approx((4 + 9) / 50)


def subject_of(*watched: str, adapted: int = 6) -> Subject:
    seed_everything(0)
    network = build(SPEC)
    every = find_blocks(network, "head")
    subject = Subject.prepare(network, every, every[-adapted:], Shape(2, 1.0))
    depths = blocks_at(every)
    subject.watched = tuple(depths[name] for name in watched)
    return subject


def test_watched_depths_stand_before_the_features_and_change_no_output() -> None:
    images = torch.rand(3, *SPEC.preprocessing.input_size)
    plain, deep = subject_of(), subject_of("1/3", "2/3")
    (features, outputs), (wide, same) = (s.forward(s.below(images)) for s in (plain, deep))
    assert deep.widths == (64, 64, 64)
    assert torch.equal(wide[:, 128:], features)
    assert torch.equal(outputs, same)
    assert not torch.equal(wide[:, :64], wide[:, 64:128])


def test_depths_below_the_first_adapted_block_are_not_watched() -> None:
    images = torch.rand(3, *SPEC.preprocessing.input_size)
    for adapted, widths in ((2, (64,)), (3, (64, 64)), (6, (64, 64, 64))):
        subject = subject_of("1/3", "2/3", adapted=adapted)
        features, _ = subject.forward(subject.below(images))
        assert (subject.widths, features.shape) == (widths, (3, sum(widths)))


def test_a_third_of_six_blocks_ends_with_the_second() -> None:
    assert blocks_at(find_blocks(build(SPEC), "head")) == {"1/3": "blocks.1", "2/3": "blocks.3"}


def test_features_are_pooled_over_tokens_and_places() -> None:
    silent, norm = nn.Identity(), nn.LayerNorm(7)
    assert pooled(silent, torch.ones(2, 5, 7)).shape == (2, 7)
    assert pooled(silent, torch.ones(2, 7, 3, 3)).shape == (2, 7)
    assert pooled(silent, (torch.ones(2, 3, 3, 7), None)).shape == (2, 7)
    assert pooled(norm, torch.ones(2, 4, 3, 7)).shape == (2, 7)
    assert pooled(norm, torch.ones(2, 7, 4, 3)).shape == (2, 7)


@pytest.mark.parametrize("share", [0.3, 1e-5])
def test_a_class_is_erased_however_rare_it_is(share: float) -> None:
    """One feature is the class itself: it must have no covariance with it afterwards."""
    items = 400_000
    concept = torch.zeros(items, 1, dtype=torch.float64)
    concept[: round(share * items)] = 1
    features = torch.cat([concept, torch.randn(items, 1, generator=torch.Generator().manual_seed(0))], dim=1)
    part = _fit(features, concept)
    assert part.directions.norm() > 0.1
    erased = part.eraser(features)
    gap = erased[: round(share * items)].mean(0) - erased[round(share * items) :].mean(0)
    assert gap.abs().max() < 1e-6


def test_only_the_deep_form_watches() -> None:
    assert Forget().watched() == ("1/3", "2/3")
    assert Forget.configure("shallow", {}).watched() == ()


def test_depth_deep_is_erasure_and_the_audit_is_its_judge(run_fresh) -> None:
    few = ("--set", "steps=2", "--set", "retain_views=1", "--set", "change_views=1", "--set", "cycles=1")
    for depth, method, words in (("deep", "erase", "what its features hold"), ("shallow", "gs-lora", "--depth deep")):
        ran = run_fresh("forget", "digits", "--classes", "two", "--depth", depth, "--again", *few)
        assert ran.code == 0, ran.err
        said = ran.err.splitlines()[-1]
        assert f"forgotten by {method} ({depth}: " in said
        assert words in said
        assert f"kswapctl audit digits@{1 if depth == 'deep' else 2} says" in said


def test_a_swap_learns_as_usual_and_forgets_to_the_depth() -> None:
    from kswapctl.cli.change import _change

    given = {"classes": "a", "data": "", "method": "", "preset": "default", "max_retain_drop": 0.01}
    given |= {"retain_share": 0.1, "seed": 0, "skip_bad": False, "device": "auto", "depth": "deep"}
    assert [_change(kind, given).method for kind in ("learn", "forget")] == ["gs-lora", "erase"]
