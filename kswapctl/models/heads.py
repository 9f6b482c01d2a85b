"""The classifier: where it is, and how it grows by the rows of learned classes.

A network of :mod:`kswapctl.models.dense` can have several that know the same classes; they grow together, and the last
one decides. Rows behind the classes ("no object") stay behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.errors import DataError
from kswapctl.models.dense import Dense


def classifier_path(model: nn.Module) -> str:
    """The path of the classifier that decides, from timm's config: ``head``, ``fc``, ``head.fc`` ...

    A network of timm with two heads, none, or one that is no linear layer is a :class:`DataError`.
    """
    if isinstance(model, Dense):
        return model.class_heads[-1]
    config: dict[str, object] = getattr(model, "pretrained_cfg", {}) or {}
    path = config.get("classifier")
    if not isinstance(path, str) or not isinstance(model.get_submodule(path), nn.Linear | GrowingHead):
        raise DataError(
            f"{type(model).__name__} has no single linear classifier (found {path!r})",
            "choose a model with one, or --no-pretrained and --classes for a new one",
        )
    return path


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of all classifiers that know the model's classes, the one that decides last."""
    return model.class_heads if isinstance(model, Dense) else (classifier_path(model),)


def spare_rows(model: nn.Module) -> int:
    """Rows of each classifier behind the classes."""
    return model.spare if isinstance(model, Dense) else 0


def classifier_rows(model: nn.Module) -> int:
    """Number of classes the classifier tells apart."""
    return _size(model.get_submodule(classifier_path(model))) - spare_rows(model)


def known_rows(model: nn.Module) -> int:
    """The same without the rows that a growing classifier adds."""
    head = model.get_submodule(classifier_path(model))
    return _size(head.known if isinstance(head, GrowingHead) else head) - spare_rows(model)


def _size(head: nn.Module) -> int:
    if isinstance(head, GrowingHead):
        return _size(head.known) + len(head.rows)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    return len(head.weight)


@dataclass(frozen=True)
class Labelled:
    """Features before the classifier with their labels."""

    features: Tensor
    """(N, D)."""
    targets: Tensor
    """(N,) rows of the classifier."""

    def among(self, rows: Sequence[int]) -> "Labelled":
        """Those with one of these targets."""
        chosen = torch.isin(self.targets, torch.tensor(list(rows), device=self.targets.device))
        return Labelled(self.features[chosen], self.targets[chosen])


class GrowingHead(nn.Module):
    """A frozen classifier with trainable rows: (..., D) features to (..., K + new) logits, or by pixel."""

    def __init__(self, known: nn.Linear | nn.Conv2d, rows: Tensor, bias: Tensor, spare: int = 0) -> None:
        """``rows`` is (new, D), ``bias`` (new,); the new rows come before the last ``spare`` known ones."""
        super().__init__()
        self.known = known.requires_grad_(False)
        self.rows = nn.Parameter(rows.clone())
        self.bias = nn.Parameter(bias.clone())
        self.spare = spare

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) to (..., K + new); or (B, D, h, w) to (B, K + new, h, w)."""
        known = self.known(features)
        if isinstance(self.known, nn.Conv2d):
            return self._before_spare(known, F.conv2d(features, self.rows[:, :, None, None], self.bias), 1)
        return self._before_spare(known, F.linear(features, self.rows, self.bias), -1)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The grown classifier's weight, in the form of the known one's, and bias (K + new,)."""
        weight = self.known.weight
        known_bias = self.known.bias if self.known.bias is not None else weight.new_zeros(len(weight))
        grown = self._before_spare(weight, self.rows.view(-1, *weight.shape[1:]), 0)
        return grown.detach(), self._before_spare(known_bias, self.bias, 0).detach()

    def _before_spare(self, known: Tensor, new: Tensor, dim: int) -> Tensor:
        front, back = known.split([known.shape[dim] - self.spare, self.spare], dim)
        return torch.cat([front, new, back] if self.spare else [known, new], dim)


class Columns(nn.Module):
    """The classifier that decides, as items see it: (N, D) features to (N, K), "no object" first where there is one."""

    def __init__(self, head: nn.Module, spare: int, before: int) -> None:
        """``before`` columns come first: the ``spare`` rows of ``head`` where it has them, or else zeros."""
        super().__init__()
        self.head = head
        self.spare = spare
        self.before = before

    @property
    def weight(self) -> Tensor:
        """(K, D)."""
        return self._ordered(*self._parts("weight"))

    @property
    def bias(self) -> Tensor:
        """(K,)."""
        return self._ordered(*self._parts("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, K)."""
        return F.linear(features, self.weight, self.bias)

    def _parts(self, name: str) -> tuple[Tensor, Tensor]:
        """Rows of the classes and those behind them, (K, D) or (K,)."""
        known = self.head.known if isinstance(self.head, GrowingHead) else self.head
        tensor = torch.as_tensor(getattr(known, name))
        tensor = tensor.flatten(1) if name == "weight" else tensor
        front, back = tensor.split([len(tensor) - self.spare, self.spare])
        if isinstance(self.head, GrowingHead):
            front = torch.cat([front, self.head.rows if name == "weight" else self.head.bias])
        return front, back

    def _ordered(self, front: Tensor, back: Tensor) -> Tensor:
        first = back if self.spare and self.before else front.new_zeros(self.before, *front.shape[1:])
        return torch.cat([first, front])


def growing(model: nn.Module) -> dict[str, GrowingHead]:
    """The classifiers that are growing, by path."""
    heads = {path: model.get_submodule(path) for path in head_paths(model)}
    return {path: head for path, head in heads.items() if isinstance(head, GrowingHead)}


def imprint(
    learn: Labelled, retain: Labelled, known: nn.Linear | nn.Conv2d, classes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(new, D) rows and (new,) bias for ``classes``, from their mean features.

    A row points from the mean of what is retained to the class's mean, with the known rows' mean norm (Qi et al.,
    Low-Shot Learning with Imprinted Weights, CVPR 2018, who do not centre). The bias lets a new class's own
    logit equal, on average, that of the known classes on their own images, within the range of known biases. A class
    that nothing is of has a row of zero.
    """
    centre = retain.features.mean(0)
    shown = [learn.features[learn.targets == c] for c in classes]
    means = torch.stack([features.mean(0) if len(features) else centre for features in shown])  # (new, D)
    weight = known.weight.flatten(1)
    rows = F.normalize(means - centre, dim=1) * weight.norm(dim=1).mean()
    own = F.linear(retain.features, weight, known.bias).gather(1, retain.targets[:, None]).mean()
    bias = own - (rows * means).sum(1)
    if known.bias is not None:
        bias = bias.clamp(known.bias.min(), known.bias.max())
    return rows.detach(), bias.detach()


def blank(known: nn.Linear | nn.Conv2d, new: int) -> tuple[Tensor, Tensor]:
    """(new, D) rows of zero and (new,) bias at the lowest of the known: a class that nothing is taken for yet."""
    weight = known.weight
    bias = weight.new_zeros(new) if known.bias is None else known.bias.detach().min().expand(new)
    return weight.new_zeros(new, weight.shape[1]), bias.clone()


def grow(model: nn.Module, path: str, rows: Tensor, bias: Tensor) -> GrowingHead:
    """Replace the classifier at ``path`` by a :class:`GrowingHead` with these new rows."""
    known = model.get_submodule(path)
    assert isinstance(known, nn.Linear | nn.Conv2d)
    head = GrowingHead(known, rows, bias, spare_rows(model))
    for other in head_paths(model):
        if _shared(model.get_submodule(other), known):  # tied: one classifier in several places
            model.set_submodule(other, head)
    return head


def resize(model: nn.Module, path: str, classes: int) -> None:
    """Give the classifier at ``path`` room for ``classes`` rows (uninitialised: weights are loaded next)."""
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    if len(old.weight) == classes and old.bias is not None:
        return
    width = old.weight.shape[1]
    new = nn.Linear(width, classes) if isinstance(old, nn.Linear) else nn.Conv2d(width, classes, 1)
    for other in head_paths(model):
        if _shared(model.get_submodule(other), old):
            model.set_submodule(other, new)


def _shared(one: nn.Module, other: nn.Linear | nn.Conv2d) -> bool:
    return one is other or getattr(one, "weight", None) is other.weight
