"""Networks that answer for many places of an image, read in one form each: boxes with scores, or scores by pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """Goes before a class of transformers: takes images, gives one tensor."""

    class_heads: tuple[str, ...]
    """Paths of all classifiers, which know the same classes; the last one decides."""
    spare: int
    """Rows of each classifier behind the classes."""
    all_layers: bool
    """Whether every layer of its blocks is adapted, not only the feed-forward ones."""
    task: str
    imprints: bool = False
    """Whether a class can be known by the mean of its features: then its row begins there, else at zero."""

    def forward(self, images: Tensor, features: bool = False) -> Any:
        """(B, C, H, W) to outputs in the task's form; with ``features`` these come first."""
        return self.examine(images) if features else self.read(super().forward(pixel_values=images))

    def examine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features before the classifier that decides, (B, Q, D) or (B, h, w, D), and the outputs."""
        inputs: list[Tensor] = []
        head = self.get_submodule(self.class_heads[-1])
        hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            found: Any = super().forward(pixel_values=images)
        finally:
            hook.remove()
        return self.spread(inputs[-1], found), self.read(found)

    def read(self, found: Any) -> Tensor:
        """What transformers answers, as one tensor."""
        raise NotImplementedError

    def spread(self, features: Tensor, found: Any) -> Tensor:
        """The classifier's input in the places of the outputs."""
        return features


class Boxes(Dense):
    """Detectors: (B, L, Q, 4 + 1 + K) of L layers; box, no object, classes as log-odds against it."""

    task = "detection"

    def read(self, found: Any) -> Tensor:
        """Every layer that classifies, the one that chooses where to look first and the one that decides last."""
        layers = [(found.logits, found.pred_boxes)]
        if getattr(found, "enc_topk_logits", None) is not None:
            layers = [
                (found.enc_topk_logits, found.enc_topk_bboxes),
                *zip(found.intermediate_logits.unbind(1), found.intermediate_reference_points.unbind(1), strict=True),
            ]
        return torch.stack([torch.cat([boxes, self._columns(scores)], dim=-1) for scores, boxes in layers], dim=1)

    def _columns(self, scores: Tensor) -> Tensor:
        """No object first: as the network says, or as log-odds of zero where it answers with sigmoids."""
        if self.spare:
            return torch.cat([scores[..., -1:], scores[..., :-1]], dim=-1)
        return torch.cat([torch.zeros_like(scores[..., :1]), scores], dim=-1)


class PixelScores(Dense):
    """Segmenters that classify each pixel: (B, h, w, K)."""

    task = "segmentation"
    imprints = True

    def read(self, found: Any) -> Tensor:
        """Classes last."""
        scores: Tensor = found.logits.permute(0, 2, 3, 1)
        return scores

    def spread(self, features: Tensor, found: Any) -> Tensor:
        """Channels last."""
        return features.permute(0, 2, 3, 1)


class MaskScores(Dense):
    """Segmenters that classify masks: the log of each pixel's summed scores (MaskFormer, Cheng et al. 2021)."""

    task = "segmentation"

    def read(self, found: Any) -> Tensor:
        """(B, h, w, K)."""
        classes = found.class_queries_logits.softmax(dim=-1)[..., :-1]  # (B, Q, K)
        masks = found.masks_queries_logits.sigmoid()  # (B, Q, h, w)
        return torch.einsum("bqk,bqhw->bhwk", classes, masks).clamp_min(1e-6).log()

    def spread(self, features: Tensor, found: Any) -> Tensor:
        """The mean over the queries of their features, as much of each as its mask has of the pixel."""
        masks = found.masks_queries_logits.sigmoid()
        mixed: Tensor = torch.einsum("bqd,bqhw->bhwd", features, masks) / masks.sum(1)[..., None].clamp_min(1e-6)
        return mixed


def examine(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and outputs of any network for (B, C, H, W) images; the outputs twice where an image has one answer."""
    if isinstance(network, Dense):
        return network.examine(images)
    outputs = network(images)
    return outputs, outputs
