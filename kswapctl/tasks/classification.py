"""Classification: one label an image."""

import math

import torch.nn.functional as F
from torch import Tensor


class Classification:
    """(B, K) logits against (B,) class indices."""

    name = "classification"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropies in nats."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) booleans: top-1 is the label."""
        return outputs.argmax(dim=-1) == targets

    def chance(self, classes: int) -> float:
        """Ln K, the cross-entropy of a uniform guess, in nats."""
        return math.log(classes)
