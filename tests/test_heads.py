"""The classifier: growing it, the rows it starts with, and finding it."""

import pytest
import torch
from torch import nn

from kswapctl.models.heads import Columns, GrowingHead, Labelled, classifier_rows, grow, imprint, resize


class Model(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "head"}
        self.head = nn.Linear(4, 3, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_grown_classifier_keeps_the_known_logits_bit_for_bit(bias: bool) -> None:
    model, features = Model(bias), torch.randn(5, 4)
    known = model.head(features)
    head = grow(model, "head", torch.randn(2, 4), torch.randn(2))
    assert head(features).shape == (5, 5)
    assert torch.equal(head(features)[:, :3], known)


@pytest.mark.parametrize("bias", [True, False])
def test_the_weights_of_a_grown_classifier_compute_what_it_computes(bias: bool) -> None:
    head = GrowingHead(nn.Linear(4, 3, bias=bias), torch.randn(2, 4), torch.randn(2))
    features = torch.randn(5, 4)
    weight, offset = head.weights()
    torch.testing.assert_close(features @ weight.T + offset, head(features))


def test_only_the_new_rows_of_a_grown_classifier_are_trainable() -> None:
    head = GrowingHead(nn.Linear(4, 3), torch.randn(2, 4), torch.randn(2))
    assert {n for n, p in head.named_parameters() if p.requires_grad} == {"rows", "bias"}


def test_new_rows_point_from_the_retained_centre_to_their_class() -> None:
    """Retained centre (0, 0), classes at (2, 0) and (-2, 0): rows (1, 0) and (-1, 0) times the known rows' norm 5."""
    known = nn.Linear(2, 1)
    known.weight.data, known.bias.data = torch.tensor([[3.0, 4.0]]), torch.zeros(1)
    learn = Labelled(torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]), torch.tensor([1, 1, 2]))
    retain = Labelled(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0]))
    rows, bias = imprint(learn, retain, known, [1, 2])
    torch.testing.assert_close(rows, torch.tensor([[5.0, 0.0], [-5.0, 0.0]]))
    torch.testing.assert_close(bias, torch.zeros(2))  # -10 each, held to the range of known biases


def test_a_class_that_nothing_is_of_gets_a_row_of_zero() -> None:
    learn = Labelled(torch.randn(3, 4), torch.tensor([1, 1, 1]))
    rows, bias = imprint(learn, Labelled(torch.randn(5, 4), torch.zeros(5, dtype=torch.long)), nn.Linear(4, 1), [1, 2])
    assert rows[0].any()
    assert not rows[1].any()
    assert bias.isfinite().all()


def test_imprinted_rows_tell_the_new_classes_apart() -> None:
    torch.manual_seed(0)
    centres, targets = torch.randn(2, 16), torch.arange(40) % 2
    features = centres[targets] + 0.1 * torch.randn(40, 16)
    retain = Labelled(torch.randn(30, 16), torch.arange(30) % 3)
    rows, bias = imprint(Labelled(features, targets + 3), retain, nn.Linear(16, 3), [3, 4])
    assert torch.equal((features @ rows.T + bias).argmax(1), targets)


@pytest.mark.parametrize(("spare", "before"), [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_columns_are_those_of_the_task_whatever_rows_the_network_has(spare: int, before: int) -> None:
    """A network's row for "no object" comes first where the task has that column, and nowhere where it has not."""
    head = nn.Linear(4, 3 + spare)
    columns = Columns(head, spare, before)
    assert torch.equal(columns.weight[before:], head.weight[:3])
    if before:
        assert torch.equal(columns.weight[0], head.weight[3] if spare else torch.zeros(4))


def test_a_classifier_is_resized_only_where_its_rows_differ() -> None:
    model = Model()
    before = model.head
    resize(model, "head", 3)
    assert model.head is before
    resize(model, "head", 7)
    assert classifier_rows(model) == 7
