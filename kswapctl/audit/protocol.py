"""The protocol ``audit-v1``: which attacks a tier runs, on which models, and what they find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from kswapctl.audit import measures
from kswapctl.audit.accuracy import measure_accuracy
from kswapctl.audit.cases import Case
from kswapctl.audit.evidence import DEPTHS, LAST
from kswapctl.audit.measures import Attack, Shipped
from kswapctl.audit.membership import measure_membership
from kswapctl.audit.probe import Probed, attack_by_probe, choose_strength
from kswapctl.audit.prototypes import VOTING_SHOTS, attack_by_prototypes
from kswapctl.audit.recovery import Recovery, Scores, recover
from kswapctl.audit.relearn import Curve, relearn_blank, relearn_head
from kswapctl.audit.shape import measure_shape
from kswapctl.audit.verdict import AUDIT_V1, AuditV1, Measure, ReferenceKind, Tier

EARLY = {f"M4 {depth}" for depth in DEPTHS if depth != LAST}
"""Below the last depth networks of two trainings, neither of which knew a class, differ by as much as one that knew it,
and other classes are easier or harder: only the very network of before (R2) is a reference."""

Found = TypeVar("Found")

Curves = dict[str, dict[str, Curve]]
"""Attack to model to its relearning curve."""


@dataclass(frozen=True)
class Models:
    """The models that are attacked alike."""

    original: Case
    audited: Case
    masked: Case
    """The original with its head masked: what forgot nothing and says nothing."""
    reference: Case | None
    """What never knew: the same classes (R1, R2), or others (R3); None for R4."""
    kind: ReferenceKind

    @property
    def named(self) -> dict[str, Case]:
        """The models by name."""
        found = {"original": self.original, "audited": self.audited, "head-masked": self.masked}
        return found if self.reference is None else {**found, "reference": self.reference}

    @property
    def paired(self) -> bool:
        """Whether the reference was asked about the same images."""
        return self.kind in {"R1", "R2"}


@dataclass(frozen=True)
class Plan:
    """How an audit is to run."""

    tier: Tier = "standard"
    seed: int = 0
    limits: AuditV1 = AUDIT_V1
    report: Callable[[str], None] = lambda _: None
    """Told each attack that is done."""
    done: dict[tuple[str, int], Any] = field(default_factory=dict)
    """What an attack found of a case (by its id, while it lives), so that none is attacked twice."""

    def once(self, attack: str, case: Case, run: Callable[[], Found]) -> Found:
        """What ``run`` finds, or found before."""
        key = (attack, id(case))
        if key not in self.done:
            self.done[key] = run()
        found: Found = self.done[key]
        return found


@dataclass(frozen=True)
class Extra:
    """What needs the networks themselves, computed before."""

    shipped: Mapping[str, Shipped] = field(default_factory=dict)
    """Form to accuracies (M7)."""
    relearned: Mapping[str, Curve] = field(default_factory=dict)
    """Model to its curve with fresh adapters (M6b)."""


def conduct(models: Models, names: Sequence[str], plan: Plan, extra: Extra) -> tuple[list[Measure], Curves]:
    """Run the attacks of a tier; ``names`` are the classes in the order of the labels."""
    label = dict(enumerate(names))
    found = [*_said(models, label, plan), _prototypes(models, label, plan)]
    curves: Curves = {}
    if plan.tier != "quick":
        found += [_probe(models, depth, label, plan) for depth in DEPTHS]
        for title, attack in {"own rows": relearn_head, "blank rows": relearn_blank}.items():
            curves[title] = {
                name: plan.once(title, case, partial(attack, case, plan.seed)) for name, case in models.named.items()
            }
            found.append(_relearned(f"M6a {title}", "classifier trained again", curves[title], models, label, plan))
            plan.report(f"M6a {title}")
    if extra.relearned:
        curves["fresh LoRA"] = dict(extra.relearned)
        found.append(_relearned("M6b fresh LoRA", "adapters trained again", extra.relearned, models, label, plan))
    if extra.shipped:
        plain = measure_accuracy(models.audited, models.original)
        found.append(measures.shipped_forms(extra.shipped, plain, len(names), plan.limits))
    return sorted(found, key=lambda m: m.id), curves


def attacks(tier: Tier) -> int:
    """How many times :func:`conduct` reports."""
    return 4 if tier == "quick" else 9


def _said(models: Models, label: Mapping[int, str], plan: Plan) -> list[Measure]:
    """M1 to M3: what the outputs say."""
    audited, original = (measure_accuracy(c, models.original) for c in (models.audited, models.original))
    theirs = None
    if models.paired and models.reference is not None:
        theirs = measure_accuracy(models.reference, models.original).forgotten.value
    found = [
        measures.forgotten_accuracy(audited, theirs, len(label), label, plan.limits),
        measures.retained_accuracy(audited, original, plan.limits),
    ]
    plan.report("M1")
    shape, masked = (measure_shape(c, models.original) for c in (models.audited, models.masked))
    found.append(measures.output_shape(shape, masked, plan.limits))
    plan.report("M2")
    mine, before = (measure_membership(c, plan.seed) for c in (models.audited, models.original))
    found.append(measures.membership(mine, before, plan.limits))
    plan.report("M3")
    return found


def _prototypes(models: Models, label: Mapping[int, str], plan: Plan) -> Measure:
    results = {
        name: plan.once("M5", case, partial(attack_by_prototypes, case, plan.seed))
        for name, case in models.named.items()
    }
    scores = {name: r.scores[VOTING_SHOTS] for name, r in results.items()}
    details = {
        name: {
            "nearest mean": {str(k): s.mean for k, s in r.scores.items()},
            "overwritten row": r.overwritten,
        }
        for name, r in results.items()
    }
    plan.report("M5")
    return _graded("M5", f"{VOTING_SHOTS}-shot prototypes", scores, models, label, plan, details)


def _probe(models: Models, depth: str, label: Mapping[int, str], plan: Plan) -> Measure:
    original = models.original
    strength = plan.once(f"C {depth}", original, partial(choose_strength, original, depth, plan.seed))
    results: dict[str, Probed] = {
        name: plan.once(f"M4 {depth}", case, partial(attack_by_probe, case, depth, strength, plan.seed))
        for name, case in models.named.items()
        if name != "head-masked"
    }
    results["head-masked"] = results["original"]  # the mask leaves the features as they are
    details = {name: {"accuracy": r.scores.mean, "shuffled": r.shuffled} for name, r in results.items()}
    scores = {name: r.scores for name, r in results.items()}
    plan.report(f"M4 {depth}")
    place = "before the classifier" if depth == LAST else f"at {depth} of the depth"
    return _graded(f"M4 {depth}", f"linear probe {place}", scores, models, label, plan, details | {"C": strength})


def _relearned(
    id_: str, title: str, curves: Mapping[str, Curve], models: Models, label: Mapping[int, str], plan: Plan
) -> Measure:
    half = {name: c.steps_to(0.5 * curves["original"].forgotten[-1]) for name, c in curves.items()}
    most = {name: c.steps_to(0.9 * curves["original"].forgotten[-1]) for name, c in curves.items()}
    details: dict[str, Any] = {
        name: {"steps to 50%": half[name], "steps to 90%": most[name], "final": c.forgotten[-1]}
        for name, c in curves.items()
    }
    if (mine := half["audited"]) is not None and (theirs := half.get("reference")) is not None:
        details["anamnesis index"] = mine / max(1, theirs)
    return _graded(id_, title, {name: c.scores for name, c in curves.items()}, models, label, plan, details)


def _graded(
    id_: str,
    title: str,
    scores: Mapping[str, Scores],
    models: Models,
    label: Mapping[int, str],
    plan: Plan,
    details: Mapping[str, Any],
) -> Measure:
    def against(name: str) -> Recovery | None:
        if "reference" not in scores:
            return None
        return recover(scores[name], scores["original"], scores["reference"], models.paired, plan.seed)

    plain = {name: s.mean for name, s in scores.items()}
    found, masked = against("audited"), against("head-masked")
    fair = models.kind == "R2" or id_ not in EARLY
    return measures.recovered(Attack(id_, title, plain, details, fair), found, masked, label, plan.limits)


def curves_as_json(curves: Curves) -> dict[str, Any]:
    """Steps and accuracies of every curve."""
    return {
        attack: {
            name: {k: v for k, v in dataclasses.asdict(c).items() if k != "scores"} for name, c in by_model.items()
        }
        for attack, by_model in curves.items()
    }
