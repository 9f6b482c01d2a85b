"""What an operation trains and looks at: each part of its images in views, through the frozen blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kswapctl.data.images import Images
from kswapctl.data.views import ENOUGH, Variation, make_views, mix_views
from kswapctl.errors import DataError
from kswapctl.models.weights import fingerprint
from kswapctl.operations.bench import Bench
from kswapctl.progress import Progress
from kswapctl.spec import Knowledge, Role
from kswapctl.training.cache import Cache
from kswapctl.training.pool import Maker, Pool
from kswapctl.training.subject import Subject


def maker_of(bench: Bench, subject: Subject, cache: Cache) -> Maker:
    """What makes the pools of an operation; activations of the same network may be ``cache``'s."""
    spec = bench.composed.spec
    network = f"{spec.architecture} {spec.arguments} {fingerprint(bench.composed.weights)}"
    return Maker(subject, bench.task, spec.preprocessing, cache, bench.team, network)


def make_pools(bench: Bench, subject: Subject, cache: Cache, progress: Progress) -> dict[str, Pool]:
    """Each part in its views, through the frozen blocks.

    What decides whether enough was learned or forgotten is seen in views too: held-out images alone are often
    near copies of trained ones, and too easy.
    """
    change, method = bench.change, bench.method
    roles: dict[str, tuple[str, Role]] = {
        "retain": ("retain", "retain"),
        "change": ("train", change.kind),
        "retain held": ("retain held", "retain"),
        "change held": ("train held", change.kind),
    }
    progress.stage("preparing views", len(roles))
    maker = maker_of(bench, subject, cache)
    pools = {}
    for index, (name, (part, role)) in enumerate(roles.items()):
        seed = change.seed * len(roles) + index
        views, targets = _views(bench, part, role, seed, held=name.endswith("held"))
        shown = bench.images[part]
        order = drawing_order(shown, bench.composed.knowledge, method.learned_weight, len(targets) // len(shown))
        pools[name] = maker.make(views, targets, order)
        progress.advance()
    _check_items(bench, pools)
    return pools


def _check_items(bench: Bench, pools: Mapping[str, Pool]) -> None:
    """Each class that changes has an item on both sides, and what must stay has one: small things may have none."""
    changed, kept = (
        {name: bench.rows.index(name) + bench.task.spare for name in names}
        for names in (bench.change.classes, bench.known)
    )
    for part, images in (("change", "training"), ("change held", "validation")):
        there = set(pools[part].before.targets.unique().tolist())
        if absent := [name for name, column in changed.items() if column not in there]:
            raise DataError(
                f"class {absent[0]!r} has nothing in its {images} images that the network could answer for",
                "objects that stand for crowds do not count, nor pixels thinner than one of the answer's",
            )
    for part, images in (("retain", "rehearsed"), ("retain held", "validation")):
        if not set(pools[part].before.targets.unique().tolist()) & set(kept.values()):
            raise DataError(
                f"nothing of what must stay is in the {images} images that the network could answer for",
                "rehearse more: --retain-per-class, or name more data: --retain-data (of swap: --data)",
            )


def _views(bench: Bench, part: str, role: Role, seed: int, *, held: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image in the method's views, or in fewer where training would not draw them all; and their targets."""
    pixels, targets, method = bench.images[part].pixels, bench.targets(part), bench.method
    variation = Variation(seed, method.view_strength, bench.task.marks)
    wanted = method.views_of(role)
    usual = min(wanted, ENOUGH.get(bench.task.marks, wanted))
    if held:
        return make_views(pixels, targets, 1 if role == "retain" else usual, variation)
    draws = bench.length * method.batch_of(role, bench.task)
    drawn = max(1, round(draws / len(pixels)))
    if drawn == 1 < wanted:
        return mix_views(pixels, targets, 1 / wanted, variation)
    return make_views(pixels, targets, min(wanted if _asked_for_views(bench, role) else usual, drawn), variation)


def _asked_for_views(bench: Bench, role: Role) -> bool:
    """Whether the request or its preset says how many views there are."""
    name = "retain_views" if role == "retain" else "change_views"
    said = {*bench.method.presets[bench.change.preset], *bench.change.settings}
    return name in said and getattr(bench.method, name) > 0


def drawing_order(images: Images, knowledge: Knowledge, learned_weight: int, copies: int = 1) -> torch.Tensor:
    """Positions of the images, those that show a class learned earlier ``learned_weight`` times.

    Where each view is an image of its own, the same images stand there in ``copies``.
    """
    repeats = torch.tensor([1 if names.isdisjoint(knowledge.learned) else learned_weight for names in images.shown()])
    return torch.arange(copies * len(images)).repeat_interleave(repeats.repeat(copies))
