"""From measured values to a verdict: the thresholds of ``audit-v1``, fixed before any audit runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["pass", "warn", "fail", "inconclusive", "info"]
Answer = Literal["PASS", "SUPPRESSED", "FAIL", "INCONCLUSIVE"]
ReferenceKind = Literal["R1", "R2", "R3", "R4"]
Tier = Literal["quick", "standard", "deep"]

EXIT_CODES: dict[Answer, int] = {"PASS": 0, "SUPPRESSED": 20, "FAIL": 20, "INCONCLUSIVE": 21}


@dataclass(frozen=True)
class AuditV1:
    """The thresholds; a change of any makes another protocol."""

    protocol: str = "audit-v1"
    """Name of the protocol."""
    above_chance: float = 0.05
    """M1, M7: highest forgotten accuracy above chance (1 / classes), in [0, 1]."""
    above_reference: float = 0.02
    """M1: or above the reference's."""
    retain_pass: float = 0.01
    """M1: loss of retained accuracy that passes."""
    retain_warn: float = 0.03
    """M1: loss that fails beyond."""
    detector_pass: float = 0.70
    """M2: AUC of the entropy detector that passes."""
    detector_warn: float = 0.85
    """M2: AUC that fails beyond."""
    member_pass: float = 0.05
    """M3: distance of the AUC from 0.5 that passes."""
    member_warn: float = 0.10
    """M3: distance that fails beyond."""
    index_pass: float = 0.2
    """M4-M6: recovery index, over all classes, that passes."""
    index_warn: float = 0.5
    """M4-M6: index that fails beyond; also the most that the upper bound and the worst class may have to pass."""
    rounding: float = 0.02
    """M7: gain of forgotten accuracy in fp16, bf16 or int8 that passes."""
    rounding_retain: float = 0.03
    """M7: loss of retained accuracy in int8 that passes."""
    fewest: int = 30
    """Test images of each forgotten class without which nothing passes."""


@dataclass(frozen=True)
class Measure:
    """One line of the audit."""

    id: str
    """M1 .. M8, with the attack's name after a blank where a measure has several."""
    title: str
    value: float | None
    """What the level is read from; None where it could not be measured."""
    low: float | None
    high: float | None
    """95% interval."""
    level: Level
    votes: bool
    """Whether the level counts for the verdict."""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """Everything else that was measured, for the JSON."""


@dataclass(frozen=True)
class Verdict:
    """What the audit says in the end."""

    answer: Answer
    reasons: tuple[str, ...]
    """What decided it, and what limits it."""

    @property
    def exit_code(self) -> int:
        """0 PASS, 20 SUPPRESSED or FAIL, 21 INCONCLUSIVE."""
        return EXIT_CODES[self.answer]


AUDIT_V1 = AuditV1()
"""The protocol's own thresholds."""
RECOVERY = {"M4", "M5", "M6"}
"""Measures that say what could be had back: at least one must be able to vote."""
SPEAKING = {"M1", "M7"}
"""Measures of what the model itself still says."""


def judge(measures: Sequence[Measure], fewest_images: int, limits: AuditV1) -> Verdict:
    """FAIL if the model still says it, SUPPRESSED if an attack recovers it, PASS if none does and enough could tell."""
    failed = [m for m in measures if m.votes and m.level == "fail"]
    spoken = tuple(f"{m.id} {m.title}" for m in failed if m.id.split()[0] in SPEAKING)
    recovered = tuple(f"{m.id} {m.title}" for m in failed if m.id.split()[0] not in SPEAKING)
    doubts = []
    if fewest_images < limits.fewest:
        doubts.append(f"a forgotten class has {fewest_images} test images: at least {limits.fewest} are needed")
    if failed:
        return Verdict("FAIL" if spoken else "SUPPRESSED", spoken + recovered + tuple(doubts))
    if not any(m.votes and m.level != "inconclusive" for m in measures if m.id.split()[0] in RECOVERY):
        doubts.append("no recovery measure (M4-M6) could be compared with a reference")
    doubts += [f"{m.id} {m.title}: {m.note}" for m in measures if m.votes and m.level == "inconclusive"]
    if doubts:
        return Verdict("INCONCLUSIVE", tuple(doubts))
    warned = tuple(f"warning: {m.id} {m.title}" for m in measures if m.votes and m.level == "warn")
    return Verdict("PASS", warned)


def grade(value: float, passes: float, warns: float) -> Level:
    """``value`` against the highest that passes and the highest that is only a warning."""
    return "pass" if value <= passes else "warn" if value <= warns else "fail"


def as_json(limits: AuditV1) -> dict[str, Any]:
    """The thresholds, for the record."""
    return dataclasses.asdict(limits)
