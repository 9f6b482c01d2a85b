"""The methods' own terms against numbers worked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kswapctl.errors import DivergedError, UsageError
from kswapctl.methods import METHODS, terms
from kswapctl.methods.base import Context
from kswapctl.methods.bi_level import Forget as BiLevel
from kswapctl.methods.fpf import Learn as Fpf
from kswapctl.methods.fpf import most_moved
from kswapctl.methods.importance import absolute_gradients, log_loss, normalised, squared_gradients, squared_length
from kswapctl.methods.margin_flatten import raised
from kswapctl.methods.plain import random_labels
from kswapctl.methods.salun import salience_masks
from kswapctl.methods.scrub import Forget as Scrub
from kswapctl.methods.ssd import dampening
from kswapctl.methods.vae import FeatureAutoencoder
from kswapctl.methods.weight_align import Learn as WeightAlign
from kswapctl.methods.weight_align import alignment
from kswapctl.models.heads import Columns, GrowingHead
from kswapctl.models.lora import Layer
from kswapctl.tasks import TASKS


def layer(before, change):
    """A layer of one row whose weight was ``before`` and has moved by ``change``, by a rank-one adapter."""
    a = nn.Parameter(torch.tensor([change]))
    return Layer(
        nn.Parameter(torch.tensor([before]), False), torch.tensor([before]), a, nn.Parameter(torch.ones(1, 1)), 1.0
    )


def test_the_anchor_weighs_squared_changes_by_importance():
    """Changes 1 and 2 of importance 3 and 0.5: (3 * 1 + 0.5 * 4) / 2 = 2.5; alike, (1 + 4) / 2."""
    layers = {"a": layer([5.0, 5.0], [1.0, 2.0])}
    assert terms.anchor(layers, {"a": torch.tensor([[3.0, 0.5]])}).item() == 2.5
    assert terms.change_size(layers).item() == 2.5


def test_logits_are_compared_on_the_columns_that_both_have():
    """Differences 1 and 3 on the known columns: (1 + 9) / 2."""
    assert terms.logit_distance(torch.tensor([[1.0, 5.0, 7.0]]), torch.tensor([[0.0, 2.0]])).item() == 5.0


def test_functions_are_compared_after_the_softmax():
    """(3/4, 1/4) against (1/2, 1/2): sqrt(1/16 + 1/16)."""
    distance = terms.function_distance(torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2))
    assert distance.item() == pytest.approx(math.sqrt(1 / 8), abs=1e-5)


def test_equal_functions_have_a_finite_gradient():
    outputs = torch.zeros(1, 3, requires_grad=True)
    terms.function_distance(outputs, torch.zeros(1, 3)).backward()
    assert torch.isfinite(outputs.grad).all()


def test_the_prototype_is_the_wanted_distribution():
    """Prototype (3/4, 1/4), feature (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)."""
    found = terms.prototype_divergence(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_level_logits_have_no_spread():
    """(1, 3) deviates by 1 from its mean on both sides; (2, 2) not at all: (1 + 1 + 0 + 0) / 4."""
    assert terms.spread(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).item() == 0.5


def test_features_are_compared_by_their_angle():
    """The same direction gives 1, the opposite -1, a right angle 0."""
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert terms.turned(torch.tensor([[3.0, 0.0], [-2.0, 0.0], [0.0, 5.0]]), before).item() == pytest.approx(0.0)
    assert terms.turned(before[:1], before[:1]).item() == pytest.approx(1.0)


def test_a_retained_feature_is_likelier_at_its_own_place():
    """Cosine 1 to its own place and 0 to one forgotten, temperature 1: -ln(e / (e + 1))."""
    found = terms.contrast(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1.0)
    assert found.item() == pytest.approx(-math.log(math.e / (math.e + 1)))


def test_the_magnitude_is_that_of_the_weights_as_they_are_now():
    """|1 - 3| + |-2 + 0| = 4."""
    assert terms.magnitude({"a": layer([1.0, -2.0], [-3.0, 0.0])}).item() == 4.0


def test_a_conflict_is_projected_out_and_agreement_left():
    """(1, -2) against (0, 1): the part along it is -2, and goes; (1, 2) agrees and stays."""
    priority = torch.tensor([0.0, 1.0])
    assert terms.without_conflict(torch.tensor([1.0, -2.0]), priority).tolist() == [1.0, 0.0]
    assert terms.without_conflict(torch.tensor([1.0, 2.0]), priority).tolist() == [1.0, 2.0]
    assert terms.without_conflict(torch.tensor([1.0, 2.0]), torch.zeros(2)).tolist() == [1.0, 2.0]


def test_dampening_strikes_what_matters_far_more_to_the_forgotten():
    """20 against 1 exceeds 5 times: factor 1/20. 4 against 1 does not. Strength 40: 40/20 is cut to 1."""
    forget, everything = torch.tensor([20.0, 4.0]), torch.ones(2)
    assert dampening(forget, everything, 5.0, 1.0).tolist() == pytest.approx([0.05, 1.0])
    assert dampening(forget, everything, 5.0, 40.0).tolist() == [1.0, 1.0]


def test_the_salient_weights_are_the_largest_gradients_of_all_layers_together():
    """Half of 4, -3, 2, 1, whatever the sign and the layer."""
    masks = salience_masks([torch.tensor([4.0, 1.0]), torch.tensor([-3.0, 2.0])], 0.5)
    assert [m.tolist() for m in masks] == [[1.0, 0.0], [1.0, 0.0]]


def test_the_multiplier_rises_while_the_constraint_is_broken_and_is_never_negative():
    assert raised(1.0, 0.5, 2.0) == 2.0
    assert raised(1.0, -9.0, 2.0) == 0.0


def test_new_rows_get_the_old_rows_mean_length():
    """Old lengths 3 and 5, mean 4; new length 2: factor 2."""
    old, new = torch.tensor([[3.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert alignment(old, new).item() == 2.0


def test_new_rows_of_a_network_with_many_answers_are_aligned_too():
    """Old rows (3, 4) and a new one of length 2 behind the columns that a task sees: factor 5 / 2."""
    known = nn.Linear(2, 1)
    known.weight.data = torch.tensor([[3.0, 4.0]])
    head = GrowingHead(known, torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]))
    context = fake_context({})
    context.classifier = Columns(head, 0, 1)
    WeightAlign().finish(context, {})
    assert (head.rows.tolist(), head.bias.tolist()) == ([[0.0, 5.0]], [2.5])


def test_the_layers_that_moved_most_for_their_size_are_sensitive():
    """Moved 1 of 10 and 1 of 2: the second."""
    layers = {"large": layer([10.0, 0.0], [1.0, 0.0]), "small": layer([2.0, 0.0], [0.0, 1.0])}
    assert most_moved(layers, 0.5) == {"small"}


def test_random_labels_are_of_classes_that_stay():
    context = fake_context({}, retained=torch.tensor([1, 4]))
    assert set(random_labels(context, 50).tolist()) == {1, 4}


def test_scrub_goes_away_and_back_and_then_only_back():
    """A cycle of four steps, however many the method asked for: some tasks take more of them."""
    method, context = Scrub(steps=2, away_share=0.5), fake_context({})
    context.length = 4
    passes = []
    for context.step in range(1, 6):
        passes.append(len(method.passes(context)))
    assert passes == [2, 2, 1, 1, 2]


def test_the_first_step_of_fpf_moves_every_layer():
    """The look that chooses blocks takes that step's gradient: a repair would let it see a quarter of the layers."""
    layers = {name: layer([1.0, 0.0], [0.0, 0.0]) for name in "abcd"}
    context = fake_context(layers)
    assert Fpf().passes(context) == [("learn",)]
    Fpf().backward(context, {"learn": torch.stack([one.b.sum() for one in layers.values()]).sum()})
    assert all(one.b.grad is not None for one in layers.values())


def test_importance_is_the_mean_of_squares_not_the_square_of_the_mean():
    """One weight w = 0 with logits (w x, 0), images x = 1 of class 0 and x = 1 of class 1.

    Gradients -1/2 and 1/2 cancel in the batch; their squares have the mean 1/4, their absolutes 1/2.
    """
    context, pool = one_weight([1.0, 1.0])
    assert squared_gradients(context, pool, log_loss, 9)["w"].item() == pytest.approx(0.25)
    assert absolute_gradients(context, pool, log_loss, 9)["w"].item() == pytest.approx(0.5)
    assert not context.layers["w"].weight.requires_grad


def test_the_sensitivity_is_that_of_the_outputs_squared_length():
    """Weight 2, image 3: the gradient of (2 * 3)^2 is 2 * 6 * 3 = 36."""
    context, pool = one_weight([3.0], weight=2.0)
    assert absolute_gradients(context, pool, squared_length, 9)["w"].item() == pytest.approx(36.0)


def test_importance_is_that_for_the_classes_known_before():
    """A new column w x beside the known (w x, 0): it has a gradient, but no importance to what was known."""
    context, pool = one_weight([3.0], weight=2.0)
    before = context.forward
    context.forward = lambda images: (images, torch.cat([before(images)[1], before(images)[1][:, :1]], dim=1))
    assert absolute_gradients(context, pool, squared_length, 9)["w"].item() == pytest.approx(36.0)


def test_importances_of_nothing_hold_nothing():
    """Of a classifier with one class no answer can be wrong."""
    assert normalised({"a": torch.zeros(2)})["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ewc", "importance_images=0"),
        ("mas", "importance_images=0"),
        ("laf", "code=-1"),
        ("fpf", "sensitive=nan"),
        ("fpf", "alone=inf"),
    ],
)
def test_what_no_method_can_work_with_is_refused(name, setting):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        METHODS[name][0].configure("default", dict([setting.split("=")]))


def test_damping_says_where_it_can_do_nothing():
    """Where seven of ten go, what matters to them matters to all at least 0.7 times as much: never 1.5 times less."""
    context = SimpleNamespace(rows=torch.arange(7), retained=torch.arange(7, 10))
    with pytest.raises(DivergedError, match=r"alpha=1\.5 dampens nothing where 70% of the classes"):
        METHODS["ssd"][0]().finish(context, {})


def test_normalised_importances_have_the_mean_one():
    found = normalised({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([8.0])})
    assert found["a"].tolist() == [0.25, 0.75]
    assert found["b"].tolist() == [2.0]


def test_an_autoencoder_knows_its_own_features_from_others():
    torch.manual_seed(0)
    own = torch.randn(200, 2) @ torch.randn(2, 8)
    fitted = FeatureAutoencoder(own, 4).fit(own, 200)
    assert fitted.distance(own).mean() < 0.5 * fitted.distance(own + 3 * torch.randn(8)).mean()


class OnePool:
    """Images of one pixel."""

    def __init__(self, values):
        self.activations = torch.tensor(values)[None, :, None]
        self.targets = torch.arange(len(values)) % 2

    def __len__(self):
        return len(self.targets)

    def prepare(self, batch):
        return batch


def test_a_single_feature_has_an_autoencoder():
    only = torch.ones(1, 8)
    assert FeatureAutoencoder(only, 2).fit(only, 2).distance(only).isfinite().all()


def one_weight(values, weight=0.0):
    """A network whose logits are (w x, 0), and images x."""
    w = nn.Parameter(torch.tensor([[weight]]), False)

    def forward(images):
        score = images @ w
        return images, torch.cat([score, torch.zeros_like(score)], dim=1)

    layers = {"w": Layer(w, w.detach(), nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1, 1)), 1.0)}
    return fake_context(layers, forward=forward), OnePool(values)


def fake_context(layers, retained=None, forward=None):
    rows = torch.tensor([0]) if retained is None else retained
    return Context(TASKS["classification"], 2, math.log(2), torch.tensor([0]), rows, nn.Identity(), {}, layers, forward)


def test_bi_level_frees_all_other_losses_of_what_acts_against_forgetting():
    weight, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    losses = {"forget": weight[0], "retain": weight[1] - weight[0], "aside 0": weight[2]}
    context = fake_context({})
    context.groups["block"] = [weight, unused]
    BiLevel().backward(context, losses)
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    assert unused.grad.tolist() == [0.0, 0.0]
