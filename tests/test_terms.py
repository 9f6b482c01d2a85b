"""Loss terms against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from kswapctl.methods.terms import any_of, bounded, bounded_mean, distill, group_norm, group_sparsity
from kswapctl.models.lora import Layer, delta
from kswapctl.training.optimiser import cosine, perturbed, shrink


def test_the_bound_acts_on_each_sample():
    """Losses 1 and 9 at bound 4: (3 + 0) / 2."""
    assert bounded(torch.tensor([1.0, 9.0]), 4.0).item() == 1.5


def test_the_papers_bound_is_met_by_the_mean_alone():
    """Mean of 1 and 9 is 5, above 4: nothing is left to do, though one sample is still known."""
    assert bounded_mean(torch.tensor([1.0, 9.0]), 4.0).item() == 0.0


def test_a_sample_beyond_the_bound_has_no_gradient():
    losses = torch.tensor([1.0, 9.0], requires_grad=True)
    bounded(losses, 4.0).backward()
    assert losses.grad.tolist() == [-0.5, 0.0]


def test_classes_together_lose_what_their_joint_probability_does():
    outputs = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3
    assert any_of(outputs, torch.tensor([1, 3])).item() == pytest.approx(-math.log(0.375))
    assert any_of(outputs, torch.tensor([0])).item() == pytest.approx(math.log(2))


def test_distillation_of_equal_logits_is_zero():
    logits = torch.randn(3, 5)
    assert distill(logits, logits, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_distillation_is_the_divergence_times_the_squared_temperature():
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2), at T = 1."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distill(student, teacher, 1.0).item() == pytest.approx(expected)
    assert distill(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected)


def test_a_class_the_teacher_does_not_know_has_probability_zero():
    """Teacher (1/2, 1/2, none), student uniform over three: ln(1/2) - ln(1/3) = ln(3/2)."""
    assert distill(torch.zeros(1, 3), torch.zeros(1, 2), 1.0).item() == pytest.approx(math.log(1.5))


def test_the_group_norm_is_joint():
    """sqrt(3^2 + 4^2) = 5, not 3 + 4."""
    assert group_norm([nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))]).item() == 5.0


def test_the_group_norm_has_a_gradient_of_zero_at_zero():
    parameter = nn.Parameter(torch.zeros(2))
    group_norm([parameter]).backward()
    assert parameter.grad.tolist() == [0.0, 0.0]


def test_group_sparsity_sums_the_groups():
    groups = {"a": [nn.Parameter(torch.tensor([3.0, 4.0]))], "b": [nn.Parameter(torch.tensor([12.0]))]}
    assert group_sparsity(groups).item() == 17.0


def test_the_proximal_step_shortens_a_group_and_zeroes_a_short_one():
    """After one step of Adam each group's metric is its gradient's root mean square, here 1 and 4.

    Half of the largest norm, 4, is a weight of 2: at rate 1 it is 2 in the first metric and 0.5 in the second. Norm 5
    less 2 is 3, a factor of 3/5; norm 1 less 2 is below zero, exactly zero; norm 1 less 0.5 is a half.
    """
    values = {"long": [3.0, 4.0], "short": [1.0], "steep": [1.0]}
    groups = {name: [nn.Parameter(torch.tensor(value))] for name, value in values.items()}
    optimiser = torch.optim.AdamW([p for g in groups.values() for p in g], lr=1.0, betas=(0.9, 0.99))
    for name, (parameter,) in groups.items():
        parameter.grad = torch.full_like(parameter, 4.0 if name == "steep" else 1.0)
    optimiser.step()
    for name, (parameter,) in groups.items():
        parameter.data = torch.tensor(values[name])
    shrink(optimiser, groups, 0.5)
    assert groups["long"][0].tolist() == pytest.approx([1.8, 2.4])
    assert groups["short"][0].tolist() == [0.0]
    assert groups["steep"][0].tolist() == pytest.approx([0.5])


def test_the_learning_rate_rises_and_ends_at_nothing():
    factors = [cosine(step, 100) for step in range(100)]
    assert factors[0] < factors[7] > factors[50] > factors[99]
    assert factors[50] == pytest.approx(0.5, abs=0.02)
    assert factors[99] < 0.001


def test_the_nearest_adapter_keeps_the_largest_singular_values():
    """diag(3, 2) at rank 1 keeps 3 and loses 2: a share of 2 / sqrt(13) of the norm. At rank 2 nothing is lost."""
    weight = nn.Parameter(torch.diag(torch.tensor([3.0, 2.0])))
    for rank, share in ((1, 4 / 13), (2, 0.0)):
        layer = Layer(weight, torch.zeros(2, 2), *make_factors(rank), scale=0.5)
        weight.data = torch.diag(torch.tensor([3.0, 2.0]))
        lost, size = layer.settle()
        assert lost / size == pytest.approx(share, abs=1e-6)
        assert layer.change().diag().tolist() == pytest.approx([3.0, 2.0 if rank == 2 else 0.0])
        torch.testing.assert_close(delta(layer.a, layer.b, 0.5), layer.change())


def make_factors(rank):
    return nn.Parameter(torch.zeros(rank, 2), False), nn.Parameter(torch.zeros(2, rank), False)


def test_noise_on_the_weights_is_gone_afterwards():
    parameter = nn.Parameter(torch.ones(4))
    with perturbed([parameter], 0.1):
        assert parameter.tolist() != [1.0] * 4
    assert parameter.tolist() == [1.0] * 4
