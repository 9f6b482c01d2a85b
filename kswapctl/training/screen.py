"""Which blocks to adapt: a short look at where the objective's gradient is.

What lies below the first adapted block runs once an image, so that only a run of blocks up to the classifier saves
time: the shortest one that holds most of the gradient is proposed.
"""

from __future__ import annotations

import torch

from kswapctl.methods import Context, Method
from kswapctl.training.items import item_pools
from kswapctl.training.loop import Plan, Pools, batch_losses, draw
from kswapctl.training.subject import Subject

SHARE = 1 / 4
"""Share of the sum of all blocks' gradient norms that the proposed blocks hold at least."""


def screen(subject: Subject, method: Method, context: Context, pools: Pools, plan: Plan) -> dict[str, float]:
    """Norm of the gradient of the objective by block, at the start; ``subject`` adapts all blocks and is not changed.

    Of adapters it is the gradient of B: that of A is zero while B is. Of a step in several passes it is their sum.
    """
    method.prepare(context, item_pools(pools, context.rows))
    draws = {role: draw(pool.order, plan.generator) for role, pool in pools.items()}
    norms = dict.fromkeys(subject.groups, 0.0)
    for roles in method.passes(context):
        losses = batch_losses(subject, method, context, {r: pools[r] for r in roles}, draws, plan)
        if losses:
            method.backward(context, losses)
            plan.team.average([p for parameters in subject.groups.values() for p in parameters])
        for name, parameters in subject.groups.items():
            gradients = [p.grad.norm() for p in parameters if p.grad is not None]
            norms[name] += torch.stack(gradients).norm().item() if gradients else 0.0
            for parameter in parameters:
                parameter.grad = None
    with torch.no_grad():
        for layer in subject.layers.values():
            layer.weight.copy_(layer.before)  # a method may have begun by changing it
    plan.team.wait()
    return norms


def shortest(norms: dict[str, float]) -> int:
    """How many of the last blocks hold ``SHARE`` of the sum of all gradient norms; all, where there is no gradient."""
    if not any(norms.values()):
        return len(norms)
    held = 0.0
    for count, norm in enumerate(reversed(norms.values()), start=1):
        held += norm
        if held >= SHARE * sum(norms.values()):
            return count
    return len(norms)
