"""Audit a version: attack it, the original, a head-masked one and a reference alike, and judge. It records itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from kswap_registry import Registry, Version

from kswapctl.audit.accuracy import right
from kswapctl.audit.cases import Case, Head, Parts, make_case, mask_head
from kswapctl.audit.evidence import Observed, observe
from kswapctl.audit.protocol import Curves, Models, Plan, attacks, conduct, curves_as_json
from kswapctl.audit.verdict import AUDIT_V1, Measure, Verdict, judge
from kswapctl.data.images import Images
from kswapctl.errors import DataError
from kswapctl.models.building import build
from kswapctl.models.heads import classifier_path
from kswapctl.models.weights import fingerprint
from kswapctl.operations.audit_material import (
    FEWEST_CONTROLS,
    Known,
    Request,
    Subject,
    choose_images,
    choose_subject,
)
from kswapctl.operations.audit_networks import check_file, look_further
from kswapctl.operations.home import environment
from kswapctl.operations.residue import Remains, find_remains
from kswapctl.operations.versions import knowledge_of
from kswapctl.progress import Progress
from kswapctl.runtime import deterministic, one_core_each, pick_device

SCHEMA = 1
LIMITATIONS = (
    "Evidence, not proof: it says what these attacks recover from these weights, given an honest operator. "
    "It does not see copies of the model elsewhere, nor stronger attacks, nor images it was not given."
)


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    subject: Subject
    measures: tuple[Measure, ...]
    curves: Curves
    verdict: Verdict
    remains: Remains
    report: dict[str, Any]
    """Everything, as JSON; only ``time`` differs between two runs."""


def audit_version(registry: Registry, version: Version, request: Request, command: str, progress: Progress) -> Audit:
    """Run the audit that ``request`` asks for, and record it in the history."""
    start = time.monotonic()
    registry.require_writable()
    subject = choose_subject(registry, version, request)
    check_file(subject.audited, request)
    sources = knowledge_of(registry.model(version.model), version).sources
    images = choose_images(subject, sources, request, progress)
    with deterministic(), one_core_each():
        models = build_models(subject, images, request.device, progress)
        extra = look_further(subject, models, images, request, progress)
        progress.stage("attacking", attacks(request.tier))
        plan = Plan(request.tier, request.seed, report=lambda _: progress.advance())
        found, curves = conduct(models, (*subject.retained, *subject.targets), plan, extra)
    fewest = min(sum(s.label == c for s in images["forget test"].samples) for c in subject.targets)
    verdict = judge(found, fewest, AUDIT_V1)
    remains = find_remains(registry, subject.knew, subject.targets)
    commitments = {
        part: {"images": len(i), "commitment": registry.commitment(i.fingerprint().encode())}
        for part, i in images.items()
    }
    report = _report(version, subject, models, request) | {
        "images": commitments,
        "measures": [dataclasses.asdict(m) for m in found],
        "curves": curves_as_json(curves),
        "residue": dataclasses.asdict(remains),
        "verdict": dataclasses.asdict(verdict) | {"exit_code": verdict.exit_code},
        "time": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": time.monotonic() - start},
    }
    report = _rounded(report)
    told = {
        "protocol": AUDIT_V1.protocol,
        "tier": request.tier,
        "reference": models.kind,
        "classes": list(subject.targets),
        "weights": report["weights"],
        "original": subject.original.name,
        "fewest": fewest,
        "verdict": verdict.answer,
        "residue": remains.level,
        "measures": {m.id: {"value": m.value, "level": m.level, "votes": m.votes} for m in found},
    }
    registry.record(version.model, "audit", _rounded(told), number=version.number, command=command)
    return Audit(subject, tuple(found), curves, verdict, remains, report)


def build_models(subject: Subject, images: Mapping[str, Images], device: str, progress: Progress) -> Models:
    """Look at the images with each network once, and sort what they make of them into cases."""
    controls = sorted({s.label for s in images["control test"].samples}) if "control test" in images else []
    stands_in = subject.reference is None and len(controls) >= FEWEST_CONTROLS and "control train" in images
    shown = {part: i for part, i in images.items() if stands_in or part != "control train"}
    networks = {known.name: known for known in (subject.original, subject.audited, subject.reference) if known}
    progress.stage("looking at images", len(networks) * sum(map(len, shown.values())))
    seen = {name: look(known, shown, device, progress) for name, known in networks.items()}
    cases = {name: case_of(known, seen[name], subject) for name, known in networks.items()}
    original, audited = cases[subject.original.name], cases[subject.audited.name]  # one and the same, perhaps
    reference = cases[subject.reference.name] if subject.reference else None
    if reference is not None:
        _check_ignorant(reference)
    elif stands_in:
        known = subject.original
        parts = seen[known.name]
        reference = make_case(parts, head_of(known), known.rows, subject.retained, controls, role="control")
    kind = subject.kind if reference is not None else "R4"
    return Models(original, audited, mask_head(original), reference, kind)


def case_of(known: Known, parts: Parts, subject: Subject) -> Case:
    """What ``known`` makes of the images, sorted by what ``subject`` retains and wants gone."""
    return make_case(parts, head_of(known), known.rows, subject.retained, subject.targets)


def head_of(known: Known) -> Head:
    """The classifier of a network."""
    path = classifier_path(build(known.spec, known.weights))
    weight = known.weights[f"{path}.weight"].float().numpy()
    bias = known.weights.get(f"{path}.bias")
    return Head(weight, np.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.float().numpy())


def look(known: Known, images: Mapping[str, Images], device: str, progress: Progress) -> dict[str, Observed]:
    """One pass of a network over every part."""
    network = build(known.spec, known.weights).to(pick_device(device))
    return {part: observe(network, i, known.spec.preprocessing, progress.advance) for part, i in images.items()}


def _check_ignorant(reference: Case) -> None:
    """A reference that names the forgotten classes, more than an audited model may, is none."""
    own = right(reference.target_test).mean()
    if own > 1 / (reference.retained + reference.targets) + AUDIT_V1.above_chance:
        raise DataError(
            f"the reference names {own:.0%} of the forgotten images: it was trained with those classes",
            "give a model that was trained without them",
        )


def _report(version: Version, subject: Subject, models: Models, request: Request) -> dict[str, Any]:
    reference = subject.reference.name if subject.reference else "never-known classes" if models.reference else "none"
    return {
        "schema": SCHEMA,
        "protocol": AUDIT_V1.protocol,
        "thresholds": dataclasses.asdict(AUDIT_V1),
        "tier": request.tier,
        "seed": request.seed,
        "version": version.ref,
        "weights": fingerprint(subject.audited.weights),
        "original": subject.original.name,
        "reference": {"kind": models.kind, "what": reference},
        "forgotten": list(subject.targets),
        "retained": list(subject.retained),
        "environment": environment(),
        "limitations": LIMITATIONS,
    }


def _rounded(value: Any) -> Any:
    """Floats to six digits, for JSON that is the same on every run."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
