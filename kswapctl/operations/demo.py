"""The whole story on handwritten digits: learn two, forget two, measure, roll back and forward, export, draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kswap_registry import Registry, Version

from kswapctl.demo.digits import CHECKPOINT, FORGET, LEARN, write_folder
from kswapctl.errors import UsageError
from kswapctl.evaluation.scores import Evaluation
from kswapctl.export.onnx import Parity
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.weights import fingerprint
from kswapctl.operations.change import Result, apply
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.models import add_model
from kswapctl.operations.pictures import Request, show_predictions
from kswapctl.operations.ship import Export, export
from kswapctl.progress import Progress
from kswapctl.spec import Change, Rehearsal

MODEL = "digits"
REHEARSAL = Rehearsal(share=0.5)
"""A tenth of this small collection would be a dozen images a class."""
QUICK = {"cycles": "1"}
"""One cycle says enough here, in half the time."""


@dataclass(frozen=True)
class Story:
    """What the demo did."""

    learned: Result
    forgot: Result
    evaluation: Evaluation
    back: Version
    forward: Version
    parity: Parity
    picture: Path
    onnx: Path


def tell(registry: Registry, folder: Path, command: str, progress: Progress) -> Story:
    """Run the demo in ``registry``, with images and results in ``folder``; a repeated one starts at the base again."""
    data = str(write_folder(folder / "digits"))
    if MODEL not in {m.name for m in registry.models()}:
        add_model(registry, MODEL, str(CHECKPOINT), Description(), data, command)
    elif registry.model(MODEL).fingerprint != fingerprint(load(str(CHECKPOINT), Description()).weights):
        raise UsageError(
            f"the registry has another model {MODEL}",
            "tell the story in a registry of its own: kswapctl demo --registry DIR",
        )
    elif registry.model(MODEL).head:
        registry.move_head(MODEL, 0, action="rollback", command=command)
    learned = apply(
        registry, MODEL, Change("learn", LEARN, data, settings=QUICK, rehearsal=REHEARSAL), command, progress
    )
    forgot = apply(registry, MODEL, Change("forget", FORGET, data, rehearsal=REHEARSAL), command, progress)
    evaluation = evaluate_version(registry, forgot.version, [], False, "cpu", progress)
    back = registry.move_head(MODEL, 0, action="rollback", command=command)
    forward = registry.move_head(MODEL, forgot.version.number, action="rollback", command=command)
    onnx = folder / "digits.onnx"
    parity = export(registry, forward, Export(onnx, every=True, overwrite=True), command, progress)
    picture = folder / "before-after.png"
    show_predictions(registry, back, forward, Request(picture, overwrite=True), progress)
    return Story(learned, forgot, evaluation, back, forward, parity, picture, onnx)
