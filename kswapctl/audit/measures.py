"""Turn what the attacks found into graded lines, by the thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kswapctl.audit.accuracy import Accuracies, Share
from kswapctl.audit.membership import Membership
from kswapctl.audit.recovery import Recovery
from kswapctl.audit.shape import Shape
from kswapctl.audit.verdict import AuditV1, Level, Measure, grade

NO_REFERENCE = "no reference"
INFORMATIVE = 0.02
"""Distance from 0.5 under which the original's own membership AUC says that this attack sees nothing."""


def forgotten_accuracy(
    audited: Accuracies, reference: float | None, classes: int, names: Mapping[int, str], limits: AuditV1
) -> Measure:
    """M1 on the forgotten classes; the worst class decides: one beyond the limit, else one that might be."""
    limit = max(1 / classes + limits.above_chance, (reference or 0.0) + limits.above_reference)
    worst = max(audited.by_class, key=lambda c: (audited.by_class[c].value > limit, audited.by_class[c].high))
    share = audited.by_class[worst]
    level: Level = "pass" if share.high <= limit else "fail" if share.value > limit else "warn"
    whole = audited.forgotten
    note = f"worst class {names[worst]} {share.value:.1%} (up to {share.high:.1%}), limit {limit:.1%}"
    each = {names[c]: dataclasses.asdict(s) for c, s in audited.by_class.items()}
    details = {"limit": limit, "by class": each, "h-mean": audited.h_mean}
    return Measure(
        "M1 forgotten", "accuracy on forgotten", whole.value, whole.low, whole.high, level, True, note, details
    )


def retained_accuracy(audited: Accuracies, original: Accuracies, limits: AuditV1) -> Measure:
    """M1 on the retained classes."""
    drop = original.retained.value - audited.retained.value
    level = grade(drop, limits.retain_pass, limits.retain_warn)
    kept = audited.retained
    note = f"{round(-100 * drop, 1) + 0.0:+.1f} points from the original"
    return Measure(
        "M1 retained", "accuracy on retained", kept.value, kept.low, kept.high, level, True, note, {"drop": drop}
    )


def output_shape(shape: Shape, masked: Shape, limits: AuditV1) -> Measure:
    """M2; without never-known images only told."""
    details = dataclasses.asdict(shape) | {"head-masked": dataclasses.asdict(masked)}
    note = f"JS {shape.divergence:.2f} bit, most common answer {shape.concentration:.0%}"
    if shape.detector is None:
        note += "; no images of never-known classes to compare with"
        return Measure("M2", "entropy tells forgotten images", None, None, None, "info", False, note, details)
    level = grade(shape.detector, limits.detector_pass, limits.detector_warn)
    return Measure("M2", "entropy tells forgotten images", shape.detector, None, None, level, False, note, details)


def membership(audited: Membership, original: Membership, limits: AuditV1) -> Measure:
    """M3, which is told and does not vote: where classes go, models retrained without them score as high."""
    title = "training images told from test"
    details = {"audited": dataclasses.asdict(audited), "original": dataclasses.asdict(original)}
    level = grade(abs(audited.auc - 0.5), limits.member_pass, limits.member_warn)
    if audited.low <= 0.5 <= audited.high:
        level = "pass"
    blind = original.low <= 0.5 <= original.high or abs(original.auc - 0.5) < INFORMATIVE
    note = f"original {original.auc:.2f}" + (": not informative" if blind else "")
    return Measure("M3", title, audited.auc, audited.low, audited.high, level, False, note, details)


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack that recovers, before it is graded."""

    id: str
    title: str
    plain: Mapping[str, float]
    """Model to the share of forgotten test images it recovers."""
    details: Mapping[str, object]
    eligible: bool = True
    """Whether the reference is fit for this attack to vote."""


def recovered(
    attack: Attack, found: Recovery | None, masked: Recovery | None, names: Mapping[int, str], limits: AuditV1
) -> Measure:
    """M4, M5 or M6; where the attack does not find the head-masked model out, it does not vote."""
    told = f"{attack.plain['audited']:.1%} (original {attack.plain['original']:.1%}"
    told += f", reference {attack.plain['reference']:.1%})" if found else ")"
    details = {**attack.details, "recovered": dict(attack.plain)}
    if found is None:
        note = f"{told}: {NO_REFERENCE}"
        return Measure(attack.id, attack.title, None, None, None, "inconclusive", False, note, details)
    details["recovery"] = dataclasses.asdict(found)
    if found.index is None or found.high is None:
        note = f"{told}: original and reference do not differ"
        return Measure(attack.id, attack.title, None, None, None, "inconclusive", False, note, details)
    separates = masked is not None and masked.index is not None and masked.index > limits.index_warn
    votes = separates and attack.eligible
    worst = found.worst or 0.0
    level = grade(found.index, limits.index_pass, limits.index_warn)
    if level == "pass" and max(found.high, worst) > limits.index_warn:
        level = "warn"
    note = told + ("" if separates else ": does not find out the head-masked model")
    note += "" if attack.eligible else ": networks differ here whatever they know, so only told"
    if found.worst_class is not None:
        note += f"; worst {names[found.worst_class]} {worst:.2f}"
    return Measure(attack.id, attack.title, found.index, found.low, found.high, level, votes, note, details)


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Accuracies of one shipped form."""

    forgotten: Share
    retained: Share


def shipped_forms(forms: Mapping[str, Shipped], plain: Accuracies, classes: int, limits: AuditV1) -> Measure:
    """M7: the form that brings most of the forgotten back."""
    worst = max(forms, key=lambda f: forms[f].forgotten.value)
    share = forms[worst].forgotten
    limit = 1 / classes + limits.above_chance
    gains = {f: s.forgotten.value - plain.forgotten.value for f, s in forms.items()}
    lost = {f: plain.retained.value - s.retained.value for f, s in forms.items()}
    back = plain.forgotten.value <= limit and share.value > limit
    rough = [f for f in forms if f != "int4" and gains[f] > limits.rounding]
    weak = lost.get("int8", 0.0) > limits.rounding_retain
    level: Level = "fail" if back else "warn" if rough or weak else "pass"
    note = ", ".join(f"{f} {s.forgotten.value:.1%}" for f, s in forms.items())
    details = {f: dataclasses.asdict(s) for f, s in forms.items()}
    return Measure("M7", "forgotten in shipped forms", share.value, share.low, share.high, level, True, note, details)
