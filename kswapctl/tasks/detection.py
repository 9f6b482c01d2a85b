"""Detection: objects with boxes; an item is an object and the query that answers for it.

Queries and objects are matched as in DETR (Carion et al., End-to-End Object Detection with Transformers, ECCV 2020).
Scores are brought to one form, log-odds against "no object" in column 0, whether a network answers with sigmoids or
with a softmax. A method sees the classification of objects only: boxes, scores that follow how well they fit, the
queries without an object and, of RT-DETR, the layers below the last are trained aside, and never on what is forgotten,
since a worse box is no forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss

from kswapctl.tasks.base import Alignment, Items, Marks, Measured
from kswapctl.tasks.boxes import Precision
from kswapctl.tasks.shown import Shown

FLOOR = 0.05
"""Lowest score of an answer that is reported: Detectron2's and MMDetection's threshold at test time."""
SURE = 0.4
"""Lowest score of an answer that is drawn."""
MOST = 100
"""Most answers an image, as COCO counts."""
PRIOR = 0.01
"""Score that an untrained head gives any class anywhere (Lin et al., Focal Loss, ICCV 2017)."""
NEAR, OVERLAP = 0.1, 0.5
"""Of two answers that are one: scores at most so far apart, boxes overlapping at least so far (generalised IoU)."""
CLASS_COST, BOX_COST, OVERLAP_COST = 2.0, 5.0, 2.0
"""Of the matching and of the boxes' losses (Zhu et al., Deformable DETR, ICLR 2021)."""
FOCUS = 2.0
"""Exponent of the focal loss for what is trained aside."""


class Detection:
    """(B, L, Q, 4 + 1 + K) outputs of L layers, the last one deciding: box (centre and size), no object, K classes.

    Targets are (B, M, 6): row, box, 1 for a crowd; the row is -1 where an image has fewer objects.
    """

    name = "detection"
    marks: Marks = "boxes"
    audited = False
    metric = "mAP"
    spare = 1
    answered = "(N, L, Q, 4 + 1 + K) of L layers, the last deciding: centre and size in [0, 1], no object, K classes"
    share = 0.125
    rarity = 0.0
    pace = 4

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) cross-entropies of objects against their class or no object, in nats."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) booleans: the class is the best one, and would be reported."""
        best = outputs[:, 1:].argmax(dim=-1) + 1
        reported = outputs.softmax(dim=-1).gather(1, best[:, None])[:, 0] >= FLOOR
        return (best == targets) & reported

    def chance(self, classes: int) -> float:
        """The loss of an untrained head, -ln 0.01, in nats: no object is what it answers, whatever K is."""
        return -math.log(PRIOR)

    def truth(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """(B, M, 5) without crowds."""
        kept = targets[..., :5].clone()
        kept[..., 0][targets[..., 5] > 0] = -1
        return kept

    def known(self, outputs: Tensor, rows: int) -> Tensor:
        """The box, no object, and the first classes."""
        return outputs[..., : 5 + rows]

    def items(self, features: Tensor, outputs: Tensor, truth: Tensor) -> Items:
        """One item an object; ``features`` is (B, Q, D) of the last layer."""
        queries, targets = match(outputs[:, -1], truth)  # (B, M)
        last = outputs[:, -1, :, 4:]
        features, last = (t.gather(1, queries[..., None].expand(-1, -1, t.shape[-1])) for t in (features, last))
        return Items(features, last, torch.where(targets >= 0, targets + 1, -1))

    def aside(self, outputs: Tensor, truth: Tensor, gone: Tensor) -> Tensor:
        """Boxes and scores of what is not ``gone``, and no object elsewhere, summed over the layers."""
        return torch.stack([_layer_loss(layer, truth, gone) for layer in outputs.unbind(1)]).sum()

    def answers(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, MOST, 6): row (-1 for none), score, and two corners in [0, 1]."""
        boxes, scores = outputs[:, -1, :, :4], outputs[:, -1, :, 4:].softmax(dim=-1)[..., 1:]
        best, place = scores.flatten(1).topk(min(MOST, scores[0].numel()))
        query, row = place // scores.shape[-1], place % scores.shape[-1]
        corners = box_convert(boxes, "cxcywh", "xyxy").clamp(0, 1)
        corners = corners.gather(1, query[..., None].expand(-1, -1, 4))
        found = torch.cat([torch.where(best >= FLOOR, row, -1)[..., None], best[..., None], corners], dim=-1)
        return F.pad(found, (0, 0, 0, MOST - found.shape[1]), value=-1.0)

    def renamed(self, answers: Tensor, rows: Tensor) -> Tensor:
        """The first of each answer's numbers, but -1 stays."""
        named = answers.clone()
        there = answers[..., 0] >= 0
        named[..., 0][there] = rows[answers[..., 0][there].long()].to(answers.dtype)
        return named

    def measure(self, answers: Tensor, targets: Tensor, rows: int, gone: Sequence[int]) -> Measured:
        """COCO's mean average precision."""
        return Precision(answers, targets)

    def aligned(self, outputs: Tensor, others: Tensor) -> Alignment:
        """Every query of the last layer that either network would report, beside the other's most like it, none twice.

        Not the one of the same number: networks that choose where to look first order queries by score, and the last
        bits of nearly equal scores decide. Where no query would be reported, the surest of each image stands for all.
        """
        pairs = [_pair(one, other) for one, other in zip(outputs[:, -1], others[:, -1], strict=True)]
        one, other = (torch.cat(side) for side in zip(*pairs, strict=True))  # (M, 5 + K)
        near = (_score(one) - _score(other)).abs() <= NEAR
        overlap = 1 - generalized_box_iou_loss(_corners(one[:, :4]), _corners(other[:, :4]))
        return Alignment(one, other, first=4, alike=near & (overlap >= OVERLAP))

    def show(self, outputs: Tensor, size: tuple[int, int]) -> list[Shown]:
        """The boxes of sure answers."""
        return [Shown(boxes=a[(a[:, 0] >= 0) & (a[:, 1] >= SURE)]) for a in self.answers(outputs, size)]

    def show_truth(self, targets: Tensor) -> list[Shown]:
        """The marked boxes, without crowds."""
        shown = []
        for objects in self.truth(targets, targets):
            there = objects[objects[:, 0] >= 0]
            corners = box_convert(there[:, 1:], "cxcywh", "xyxy")
            shown.append(Shown(boxes=torch.cat([there[:, :1], torch.ones(len(there), 1), corners], dim=1)))
        return shown


def match(layer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M) queries that answer for the objects of ``truth``, and their rows, -1 where there is no object.

    ``layer`` is (B, Q, 5 + K). A class without a column yet is matched by its box alone.
    """
    from scipy.optimize import linear_sum_assignment

    queries = torch.zeros(truth.shape[:2], dtype=torch.long)
    rows = truth[..., 0].long().cpu()
    known = layer.shape[-1] - 5
    found = layer.detach().float().cpu()
    boxes, scores = found[..., :4], F.pad(found[..., 4:].softmax(-1), (0, 1))  # the last column: not known yet
    for index, image in enumerate(rows):
        objects = torch.nonzero(image >= 0)[:, 0]
        if not len(objects):
            continue
        column = torch.where(image[objects] < known, image[objects] + 1, known + 1)
        places = truth[index, objects, 1:].float().cpu()
        cost = -CLASS_COST * scores[index][:, column] + BOX_COST * torch.cdist(boxes[index], places, p=1)
        cost = cost - OVERLAP_COST * generalized_box_iou(_corners(boxes[index]), _corners(places))
        query, which = linear_sum_assignment(cost.nan_to_num(1e4).numpy())
        queries[index, objects[which]] = torch.as_tensor(query)
        missed = torch.ones(len(objects), dtype=torch.bool)
        missed[which] = False  # more objects than queries
        rows[index, objects[missed]] = -1
    return queries.to(layer.device), rows.to(layer.device)


def _layer_loss(layer: Tensor, truth: Tensor, gone: Tensor) -> Tensor:
    """No object where there is none; of the objects that are not ``gone`` boxes, and scores that tell how they fit."""
    queries, rows = match(layer, truth)
    there = rows >= 0
    kept = there & ~torch.isin(rows, gone)
    image = torch.arange(len(layer), device=layer.device)[:, None].expand_as(queries)
    empty = torch.ones(layer.shape[:2], dtype=torch.bool, device=layer.device)
    empty[image[there], queries[there]] = False
    noise = F.cross_entropy(layer[..., 4:][empty], queries.new_zeros(int(empty.sum())), reduction="none")
    noise = noise * (1 - (-noise.detach()).exp()) ** FOCUS
    found, places = layer[image[kept], queries[kept]], truth[kept][:, 1:]
    boxes = found[:, :4]
    losses = BOX_COST * (boxes - places).abs().sum(1)
    losses = losses + OVERLAP_COST * generalized_box_iou_loss(_corners(boxes), _corners(places))
    overlaps = box_iou(_corners(boxes.detach()), _corners(places)).diagonal()
    losses = losses + CLASS_COST * quality(found[:, 4:], rows[kept] + 1, overlaps)
    total: Tensor = noise.sum() / kept.sum().clamp_min(1) + across_classes(losses, rows[kept])
    return total


def quality(scores: Tensor, columns: Tensor, overlaps: Tensor) -> Tensor:
    """(N,) cross-entropies, in nats, of the probabilities of ``columns`` in (N, C) ``scores`` with ``overlaps``.

    An answer is as sure as its box fits, in [0, 1], so the best placed of several is the surest, and the one from
    which the next layer goes on (Zhang et al., VarifocalNet, CVPR 2021; RT-DETR is trained so from the start).
    """
    own = scores.gather(1, columns[:, None])[:, 0]
    others = scores.scatter(1, columns[:, None], -torch.inf).logsumexp(dim=1)
    return F.binary_cross_entropy_with_logits(own - others, overlaps, reduction="none")


def across_classes(losses: Tensor, rows: Tensor) -> Tensor:
    """Mean over classes of the mean of (N,) losses of their objects of (N,) ``rows``; zero of none."""
    if not len(rows):
        return losses.sum()
    counts = torch.bincount(rows)[rows]
    return (losses / counts).sum() / (1 / counts).sum()


def _corners(boxes: Tensor) -> Tensor:
    """Two corners of boxes given by centre and size, which must not be empty."""
    corners: Tensor = box_convert(torch.cat([boxes[:, :2], boxes[:, 2:].clamp_min(1e-6)], dim=1), "cxcywh", "xyxy")
    return corners


def _score(queries: Tensor) -> Tensor:
    """(..., Q) scores of the best class of each of (..., Q, 5 + K)."""
    return queries[..., 4:].softmax(dim=-1)[..., 1:].amax(dim=-1)


def _pair(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of one image's (Q, 5 + K), each beside the like row of the other, of which one or both would be reported."""
    from scipy.optimize import linear_sum_assignment

    reported, theirs = ((s >= FLOOR) | (s == s.amax()) for s in (_score(one), _score(other)))
    either = reported[:, None] | theirs
    cost = torch.cdist(one[:, 4:], other[:, 4:], p=1) / (one.shape[-1] - 4)
    cost = cost + BOX_COST * torch.cdist(one[:, :4], other[:, :4], p=1)
    rows, columns = linear_sum_assignment(torch.where(either, cost.nan_to_num(1e4, posinf=1e4), 0.0).numpy())
    kept = either[rows, columns]
    return one[rows[kept]], other[columns[kept]]
