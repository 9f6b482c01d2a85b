"""What an audit does with the networks themselves: the forms that are shipped (M7), and fresh adapters (M6b)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kswapctl.audit.accuracy import share_of
from kswapctl.audit.cases import Case, Head, View, balanced
from kswapctl.audit.deployment import FORMS, rounded
from kswapctl.audit.fresh_lora import STEPS, Labelled, Lesson, relearn_lora
from kswapctl.audit.measures import Shipped
from kswapctl.audit.protocol import Extra, Models
from kswapctl.audit.relearn import EACH, Curve
from kswapctl.data.images import Images
from kswapctl.errors import NotFoundError, UsageError, WrongBaseError
from kswapctl.evaluation.predict import predict
from kswapctl.export.onnx import run_onnx
from kswapctl.models.building import build
from kswapctl.operations.audit_material import Known, Request, Subject
from kswapctl.progress import Progress
from kswapctl.runtime import pick_device

LESSON_TEST = 20
"""Test images of each class that fresh adapters are examined on."""

ByPart = Mapping[str, Images]


def look_further(subject: Subject, models: Models, images: ByPart, request: Request, progress: Progress) -> Extra:
    """What the tier asks for beyond one pass over the images."""
    if request.tier == "quick":
        return Extra()
    shipped = ship(subject.audited, images, request, progress)
    return Extra(shipped, _relearn(subject, models, images, request, progress) if request.tier == "deep" else {})


def check_file(known: Known, request: Request) -> None:
    """Before anything long: that the exported file to examine is there, runs, and has the classes of ``known``."""
    file = request.onnx
    if file is None:
        return
    if request.tier == "quick":
        raise UsageError("the quick tier examines no exported file", "say --tier standard, or leave out --onnx")
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}")
    black = torch.zeros(1, *known.spec.preprocessing.input_size, dtype=torch.uint8)
    classes = run_onnx(file, black, known.spec).shape[1]
    if classes != len(known.rows):
        raise WrongBaseError(f"{file.name} has {classes} classes, {known.name} has {len(known.rows)}")


def ship(known: Known, images: ByPart, request: Request, progress: Progress) -> dict[str, Shipped]:
    """Accuracies of the rounded forms of a network, and of the exported file."""
    parts = (images["forget test"], images["retain test"])
    progress.stage("shipped forms", len(FORMS) * sum(map(len, parts)))
    found = {}
    for form in FORMS:
        network = build(known.spec, rounded(known.weights, form)).to(pick_device(request.device))
        shares = []
        for part in parts:
            named = predict(network, part.pixels, known.spec.preprocessing, progress.advance).argmax(1)
            shares.append(share_of(int((named == part.targets(known.rows)).sum()), len(part)))
        found[form] = Shipped(*shares)
    if request.onnx:
        shares = []
        for part in parts:
            outputs = run_onnx(request.onnx, part.pixels, known.spec)
            shares.append(share_of(int((outputs.argmax(1) == part.targets(known.rows)).sum()), len(part)))
        found["onnx"] = Shipped(*shares)
    return found


@dataclass(frozen=True)
class Pupil:
    """A network that is to learn again."""

    known: Known
    case: Case
    role: str
    """forget, or control where never-known classes stand in the forgotten's place."""


def _relearn(
    subject: Subject, models: Models, images: ByPart, request: Request, progress: Progress
) -> dict[str, Curve]:
    """M6b on the audited, the original (which is the head-masked, its rows being blank) and the reference."""
    pupils = {"original": Pupil(subject.original, models.original, "forget")}
    if models.audited is not models.original:
        pupils["audited"] = Pupil(subject.audited, models.audited, "forget")
    if models.reference is not None:
        known, role = (subject.reference, "forget") if subject.reference else (subject.original, "control")
        pupils["reference"] = Pupil(known, models.reference, role)
    progress.stage("learning again", len(pupils) * STEPS[-1])
    curves = {name: teach(p, subject.blocks, images, request.seed, progress) for name, p in pupils.items()}
    return {"audited": curves["original"], **curves, "head-masked": curves["original"]}


def teach(pupil: Pupil, blocks: str, images: ByPart, seed: int, progress: Progress) -> Curve:
    """Train fresh adapters, with the rows of the target classes blank."""
    case, known = pupil.case, pupil.known
    head = Head(case.head.weight.copy(), case.head.bias.copy())
    head.weight[case.target_labels], head.bias[case.target_labels] = 0.0, head.bias[: case.retained].mean()
    network = build(known.spec, known.weights)
    return relearn_lora(network, head, blocks, _lesson(pupil, images, seed), seed, progress.advance)


def _lesson(pupil: Pupil, images: ByPart, seed: int) -> Lesson:
    case, role = pupil.case, pupil.role

    def part(name: str, view: View, each: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.from_numpy(balanced(view, each, seed))
        return images[name].pixels[chosen], torch.from_numpy(view.labels)[chosen]

    kept, gone = part("retain train", case.retain_train, EACH), part(f"{role} train", case.target_train, EACH)
    return Lesson(
        Labelled(torch.cat([kept[0], gone[0]]), torch.cat([kept[1], gone[1]])),
        Labelled(*part(f"{role} test", case.target_test, LESSON_TEST)),
        Labelled(*part("retain test", case.retain_test, LESSON_TEST // 4)),
        pupil.known.spec.preprocessing,
    )
