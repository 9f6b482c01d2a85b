"""The classifier: where it is, and how it grows by the rows of learned classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.errors import DataError


def classifier_path(model: nn.Module) -> str:
    """The path of the classifier, from timm's config: ``head``, ``fc``, ``head.fc`` ...

    A network with two heads, none, or one that is no linear layer is a :class:`DataError`.
    """
    config: dict[str, object] = getattr(model, "pretrained_cfg", {}) or {}
    path = config.get("classifier")
    if not isinstance(path, str) or not isinstance(model.get_submodule(path), nn.Linear | GrowingHead):
        raise DataError(
            f"{type(model).__name__} has no single linear classifier (found {path!r})",
            "choose a model with one, or give it classes",
        )
    return path


def classifier_rows(model: nn.Module) -> int:
    """Number of classes the classifier tells apart."""
    head = model.get_submodule(classifier_path(model))
    assert isinstance(head, nn.Linear)
    return head.out_features


@dataclass(frozen=True)
class Labelled:
    """Features before the classifier with their labels."""

    features: Tensor
    """(N, D)."""
    targets: Tensor
    """(N,) rows of the classifier."""


class GrowingHead(nn.Module):
    """A frozen classifier with trainable rows appended: (B, D) features to (B, K + new) logits."""

    def __init__(self, known: nn.Linear, rows: Tensor, bias: Tensor) -> None:
        """``rows`` is (new, D), ``bias`` (new,)."""
        super().__init__()
        self.known = known.requires_grad_(False)
        self.rows = nn.Parameter(rows.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, K + new)."""
        return torch.cat([self.known(features), F.linear(features, self.rows, self.bias)], dim=-1)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The grown classifier's weight (K + new, D) and bias (K + new,)."""
        known_bias = (
            self.known.bias if self.known.bias is not None else self.known.weight.new_zeros(len(self.known.weight))
        )
        return torch.cat([self.known.weight, self.rows]).detach(), torch.cat([known_bias, self.bias]).detach()


def imprint(learn: Labelled, retain: Labelled, known: nn.Linear, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(new, D) rows and (new,) bias for ``classes``, from their mean features.

    A row points from the mean of what is retained to the class's mean, with the known rows' mean norm (Qi et al.,
    Low-Shot Learning with Imprinted Weights, CVPR 2018, who do not centre). The bias lets a new class's own
    logit equal, on average, that of the known classes on their own images, within the range of known biases.
    """
    centre = retain.features.mean(0)
    means = torch.stack([learn.features[learn.targets == c].mean(0) for c in classes])  # (new, D)
    rows = F.normalize(means - centre, dim=1) * known.weight.norm(dim=1).mean()
    own = known(retain.features).gather(1, retain.targets[:, None]).mean()
    bias = own - (rows * means).sum(1)
    if known.bias is not None:
        bias = bias.clamp(known.bias.min(), known.bias.max())
    return rows.detach(), bias.detach()


def grow(model: nn.Module, path: str, rows: Tensor, bias: Tensor) -> GrowingHead:
    """Replace the classifier at ``path`` by a :class:`GrowingHead` with these new rows."""
    known = model.get_submodule(path)
    assert isinstance(known, nn.Linear)
    head = GrowingHead(known, rows, bias)
    model.set_submodule(path, head)
    return head


def resize(model: nn.Module, path: str, classes: int) -> None:
    """Give the classifier at ``path`` room for ``classes`` rows (uninitialised: weights are loaded next)."""
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    if old.out_features != classes or old.bias is None:
        model.set_submodule(path, nn.Linear(old.in_features, classes))
