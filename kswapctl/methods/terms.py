"""Loss terms, pure: tensors in, a scalar out. Methods are sums of these."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.models.lora import Layer


def bounded(losses: Tensor, bound: float) -> Tensor:
    """Mean over samples of relu(bound - loss), in nats: zero once each sample's loss is above ``bound``.

    Per sample, unlike the public code of Zhao et al. 2024 and Xing et al. 2025, where the bound is on the batch
    mean: there a few very wrong classes can hide one that is still known.
    """
    return F.relu(bound - losses).mean()


def bounded_mean(losses: Tensor, bound: float) -> Tensor:
    """relu(bound - mean loss), in nats: the bound on the batch mean, as in the papers' public code."""
    return F.relu(bound - losses.mean())


def any_of(outputs: Tensor, rows: Tensor) -> Tensor:
    """(B,) -ln of the probability that (B, K) logits give the classes of ``rows`` together, in nats."""
    return outputs.logsumexp(dim=-1) - outputs[:, rows].logsumexp(dim=-1)


def distill(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of (B, K) logits at ``temperature``, times T^2, in nats (Hinton et al. 2015).

    A teacher with fewer columns gives the classes it does not know the probability zero: the student must
    not take what the teacher knows for one of them.
    """
    wanted = F.pad(F.softmax(teacher / temperature, dim=-1), (0, student.shape[-1] - teacher.shape[-1]))
    log_student = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(log_student, wanted, reduction="batchmean") * temperature**2


def group_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Joint Frobenius norm of one block's parameters; its gradient at zero is zero, not NaN."""
    squares = torch.stack([p.square().sum() for p in parameters]).sum()
    return torch.where(squares > 0, squares.clamp_min(1e-24).sqrt(), squares.new_zeros(()))


def group_sparsity(groups: dict[str, list[nn.Parameter]]) -> Tensor:
    """Sum over blocks of their joint Frobenius norm (Zhao et al. 2024, Eq. 7; Yuan & Lin 2006)."""
    return torch.stack([group_norm(parameters) for parameters in groups.values()]).sum()


def anchor(layers: Mapping[str, Layer], importances: Mapping[str, Tensor]) -> Tensor:
    """Half the sum, over all weights, of importance times squared change (Kirkpatrick et al. 2017, Eq. 3)."""
    terms = [(importances[name] * layer.change().square()).sum() for name, layer in layers.items()]
    return torch.stack(terms).sum() / 2


def logit_distance(outputs: Tensor, before: Tensor) -> Tensor:
    """Mean squared difference of (B, K) logits on the columns that both have (Buzzega et al. 2020, Eq. 6)."""
    return (outputs[:, : before.shape[1]] - before).square().mean()


def function_distance(outputs: Tensor, before: Tensor) -> Tensor:
    """Mean over samples of the Euclidean distance of softmax outputs (Benjamin et al. 2019); unknown rows were 0."""
    known = F.pad(F.softmax(before, dim=-1), (0, outputs.shape[-1] - before.shape[-1]))
    squares = (F.softmax(outputs, dim=-1) - known).square().sum(-1)
    return (squares + 1e-12).sqrt().mean()  # the root's gradient at zero must not be NaN


def prototype_divergence(features: Tensor, prototypes: Tensor) -> Tensor:
    """(B,) KL(softmax(prototype) || softmax(feature)) of (B, D) features and their classes' means, in nats."""
    log_wanted = F.log_softmax(prototypes, dim=-1)
    return F.kl_div(F.log_softmax(features, dim=-1), log_wanted, reduction="none", log_target=True).sum(-1)


def spread(outputs: Tensor) -> Tensor:
    """Mean squared deviation of (B, K) logits from their row's mean: zero where every class is as likely."""
    return (outputs - outputs.mean(-1, keepdim=True)).square().mean()


def turned(features: Tensor, before: Tensor) -> Tensor:
    """Mean cosine between (B, D) features now and before, in [-1, 1]: what parting from the old ones lowers."""
    return F.cosine_similarity(features, before, dim=-1).mean()


def contrast(kept: Tensor, kept_before: Tensor, gone_before: Tensor, temperature: float) -> Tensor:
    """How much likelier a retained feature's own old place is than the forgotten ones', as a loss in nats.

    (B, D), (B, D) and (F, D) features are compared by cosine over ``temperature`` (Shen et al. 2024, Eq. 10).
    """
    kept, kept_before, gone_before = (F.normalize(x, dim=-1) for x in (kept, kept_before, gone_before))
    own = (kept * kept_before).sum(-1, keepdim=True) / temperature  # (B, 1)
    others = kept @ gone_before.T / temperature  # (B, F)
    return -F.log_softmax(torch.cat([own, others], dim=-1), dim=-1)[:, 0].mean()


def magnitude(layers: Mapping[str, Layer]) -> Tensor:
    """Sum of the absolute values of the adapted layers' weights as they are now."""
    return torch.stack([(layer.before + layer.change()).abs().sum() for layer in layers.values()]).sum()


def without_conflict(gradient: Tensor, priority: Tensor) -> Tensor:
    """``gradient`` less its part against ``priority``; as it is where the two do not conflict (Yu et al. 2020)."""
    along = (gradient * priority).sum()
    if along >= 0:
        return gradient
    return gradient - along / priority.square().sum().clamp_min(1e-24) * priority


def change_size(layers: Mapping[str, Layer]) -> Tensor:
    """Half the sum of the squared changes of all weights: the anchor with equal importances."""
    return torch.stack([layer.change().square().sum() for layer in layers.values()]).sum() / 2
