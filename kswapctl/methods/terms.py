"""Loss terms, pure: tensors in, a scalar out. Methods are sums of these."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bounded(losses: Tensor, bound: float) -> Tensor:
    """Mean over samples of relu(bound - loss), in nats: zero once each sample's loss is above ``bound``.

    Per sample, unlike the public code of Zhao et al. 2024 and Xing et al. 2025, where the bound is on the batch
    mean: there a few very wrong classes can hide one that is still known.
    """
    return F.relu(bound - losses).mean()


def bounded_mean(losses: Tensor, bound: float) -> Tensor:
    """relu(bound - mean loss), in nats: the bound on the batch mean, as in the papers' public code."""
    return F.relu(bound - losses.mean())


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
