"""How much each weight matters for a set of images: gradients image by image, never of a batch's mean.

The public code of several papers squares the gradient of a batch, in which the images' gradients cancel; the Fisher
information is the mean of the squares. Only the classes known before the operation count.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kswapctl.methods.base import Context

Score = Callable[[Tensor, Tensor], Tensor]
"""(K,) logits and the target to the scalar whose gradient tells the importance."""


def squared_gradients(context: Context, pool: Any, score: Score, images: int) -> dict[str, Tensor]:
    """Layer to the mean over up to ``images`` of the squared gradient of ``score``, in the weight's shape."""
    return _mean_over_images(context, pool, score, images, torch.square)


def absolute_gradients(context: Context, pool: Any, score: Score, images: int) -> dict[str, Tensor]:
    """Layer to the mean over up to ``images`` of the absolute gradient of ``score``, in the weight's shape."""
    return _mean_over_images(context, pool, score, images, torch.abs)


def log_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the image's own label: the empirical Fisher information."""
    return F.cross_entropy(outputs, target)


def drawn_log_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with a label drawn from the model's own answer: the Fisher information itself."""
    return F.cross_entropy(outputs, torch.multinomial(outputs.detach().softmax(-1), 1)[0])


def squared_length(outputs: Tensor, target: Tensor) -> Tensor:
    """Squared norm of the logits (Aljundi et al. 2018): no label is needed."""
    return outputs.square().sum()


def normalised(importances: dict[str, Tensor]) -> dict[str, Tensor]:
    """The importances over their mean, so that one strength suits every measure of them."""
    total = sum(values.sum() for values in importances.values())
    if not total:  # of a classifier with one class no answer can be wrong
        return importances
    count = sum(values.numel() for values in importances.values())
    return {name: values * (count / total) for name, values in importances.items()}


def _mean_over_images(
    context: Context, pool: Any, score: Score, images: int, size: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    weights = {name: layer.weight for name, layer in context.layers.items()}
    trained = {name: weight.requires_grad for name, weight in weights.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    chosen = range(0, len(pool), max(1, -(-len(pool) // images)))
    assert context.forward is not None
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for index in chosen:
            _, outputs = context.forward(pool.prepare(pool.activations[0, index : index + 1]).float())
            value = score(outputs[0, : context.known], pool.targets[index])
            gradients = torch.autograd.grad(value, list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += size(gradient) / len(chosen)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(trained[name])
    return total
