"""What an audit needs from the registry and the data: which models to compare, which images to attack with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kswap_registry import CorruptBlob, MissingBlob, PurgedBlob, Registry, Version

from kswapctl.audit.verdict import ReferenceKind, Tier
from kswapctl.data.images import Images
from kswapctl.data.sets import Chosen, count, gather
from kswapctl.data.sources import Sample, Source, open_left, open_source
from kswapctl.data.splits import by_class, take, test_part, training_part
from kswapctl.errors import DataError, NotFoundError, UnsafeInputError, UsageError, WrongBaseError, nearest
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.weights import Weights
from kswapctl.operations.residue import knew_before_merging
from kswapctl.operations.versions import Composed, knowledge_of, load_version
from kswapctl.progress import Progress
from kswapctl.spec import ModelSpec, listed
from kswapctl.tasks import TASKS

FEWEST_CONTROLS = 5
"""Never-known classes from which they can stand for a reference."""
RETAIN_SHARE, RETAIN_LEAST = 0.1, 10
"""Share of each retained class's training images that attackers have, and the least number."""
TOLD_TO_ADD = ("--allow-pickle", "--architecture", "--classes-file")
"""Options that ``add`` has and an audit has not."""
TARGET_MOST = 100
"""Most training images of a forgotten or never-known class that attackers have."""


@dataclass(frozen=True)
class Request:
    """An audit, as asked for."""

    tier: Tier = "standard"
    classes: tuple[str, ...] = ()
    """What should be gone; empty means what was forgotten last."""
    reference: Path | None = None
    """A model trained without the classes (R1)."""
    control: str = ""
    """Images of classes the model never knew (R3); empty means those of the data that have no row."""
    data: tuple[str, ...] = ()
    """Where the images are; empty means what the stack was trained with."""
    onnx: Path | None = None
    """The exported file to examine as well (M7)."""
    seed: int = 0
    skip_bad: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Known:
    """A network that is attacked: how to build it, and its rows."""

    name: str
    spec: ModelSpec
    rows: tuple[str, ...]
    weights: Weights


@dataclass(frozen=True)
class Subject:
    """What is audited, against what."""

    audited: Known
    original: Known
    """The stack before the classes were forgotten."""
    reference: Known | None
    """What never knew them (R1, R2)."""
    kind: ReferenceKind
    """R3 until it is known whether there are enough never-known classes."""
    targets: tuple[str, ...]
    retained: tuple[str, ...]
    blocks: str
    """Which blocks forgetting adapted."""
    seen: tuple[str, ...]
    """The sources that forgetting drew on, of what goes and of what stays; none if nothing was forgotten."""
    knew: str
    """The version that knew the classes; the original, unless its files were purged."""


def choose_subject(registry: Registry, version: Version, request: Request) -> Subject:
    """Find the models to compare; classes that were not forgotten are held against the version itself."""
    composed = load_version(registry, version)
    if not TASKS[composed.spec.task].audited:
        raise UsageError(
            f"{version.model} is a model for {composed.spec.task}: the attacks of an audit need one label an image",
            "kswapctl eval says what forgotten objects and pixels are taken for",
        )
    targets = tuple(dict.fromkeys(request.classes or composed.knowledge.sets()["forgotten"]))
    if not targets:
        raise UsageError(f"{version.ref} has forgotten nothing", "name what should be gone: --classes A,B")
    for name in targets:
        if name not in composed.knowledge.classes:
            raise NotFoundError(f"{version.ref} has no class {name!r}", nearest(name, composed.knowledge.classes))
    merged = knew_before_merging(registry, version, targets)
    original, operation = _original(registry, composed, targets, merged)
    retained = tuple(c for c in composed.knowledge.known if c in original.knowledge.known and c not in targets)
    reference, kind = _reference(registry, original, targets, request)
    return Subject(
        audited=_known(composed),
        original=_known(original),
        reference=reference,
        kind=kind,
        targets=targets,
        retained=retained,
        blocks=_adapted(operation.spec.get("blocks", "")) if operation else "all",
        seen=_seen(operation, original) if operation else (),
        knew=merged or original.version.ref,
    )


def _original(
    registry: Registry, composed: Composed, targets: Sequence[str], merged: str
) -> tuple[Composed, Version | None]:
    """The last version below ``composed``, or itself, that knew all ``targets``, and the operation above it, if any.

    Of a base that another model was merged to, that is its version ``merged``, as long as the files are here.
    """
    version = composed.version
    if merged:
        with contextlib.suppress(MissingBlob, PurgedBlob, CorruptBlob):
            return load_version(registry, registry.resolve(merged)), None
    line = [registry.resolve(f"{version.model}@base"), *registry.stack(version)]
    model = registry.model(version.model)
    for below, above in zip(reversed(line), (None, *reversed(line[1:])), strict=True):
        if set(targets) <= set(knowledge_of(model, below).known):
            return (load_version(registry, below) if above else composed), above
    raise UsageError(
        f"no version below {version.ref} knows all of {listed(targets)}: they were forgotten at different times",
        "audit them one after the other: --classes",
    )


def choose_images(subject: Subject, usual: Sequence[str], request: Request, progress: Progress) -> dict[str, Images]:
    """Read the images by part: retain, forget and control, train and test each; the parts do not overlap."""
    names = list(request.data) or list(usual)
    if not names:
        raise UsageError("no data to audit with", "name it: --data DIR")
    sources = [open_source(name) for name in names]
    seen, _ = open_left(n for n in dict.fromkeys(subject.seen) if n not in {s.name for s in sources})
    controls = _controls(subject, sources, request)
    chosen: dict[str, Chosen] = {
        "forget train": _trimmed(_find([*seen, *sources], subject.targets, training_part), request.seed),
        "forget test": _find(sources, subject.targets, test_part),
        "retain train": _shared(_find(sources, subject.retained, training_part), request.seed),
        "retain test": _find(sources, subject.retained, test_part),
        "control train": _trimmed(_find(controls[0], controls[1], training_part), request.seed),
        "control test": _find(controls[0], controls[1], test_part),
    }
    _require(chosen, subject, names)
    progress.stage("reading images", sum(map(count, chosen.values())))
    read = {
        part: gather(samples, subject.audited.spec.preprocessing, request.skip_bad, progress.advance)
        for part, samples in chosen.items()
        if count(samples)
    }
    for name in (bad for images in read.values() for bad in images.bad):
        progress.note(f"skipped: {name}")
    for part, classes in (("forget test", subject.targets), ("retain test", subject.retained)):
        _check_unseen([*seen, *sources], classes, read[part])
    return read


def _check_unseen(sources: Sequence[Source], classes: Collection[str], test: Images) -> None:
    """No image that is tested may be one that forgetting could see, also of those that attackers are not given."""
    tested = dict(zip(test.digests, test.samples, strict=True))
    for source in sources:
        for sample in training_part(source, set(classes) & set(source.classes)):
            digest = hashlib.sha256(source.read(sample)).hexdigest()
            if digest in tested:
                raise DataError(
                    f"the test image {tested[digest].key} is also the training image {sample.key}",
                    "an audit must test on images that forgetting did not see: remove the copies",
                )


def _reference(
    registry: Registry, original: Composed, targets: Collection[str], request: Request
) -> tuple[Known | None, ReferenceKind]:
    if request.reference:
        known = _from_file(request.reference, original)
        lacking = [c for c in original.knowledge.sets()["retain"] if c not in {*known.rows, *targets}]
        if lacking:
            raise WrongBaseError(
                f"the reference {known.name} does not know {lacking[0]!r}, which must stay ({len(lacking)} in all)",
                "a reference is trained on all classes but the forgotten ones",
            )
        return known, "R1"
    learned = [original.knowledge.learned.get(c, 0) for c in targets]
    if all(learned):
        before = load_version(registry, _at(registry, original.version, min(learned) - 1))
        if not set(targets) & set(before.knowledge.classes):
            return _known(before), "R2"
    return None, "R3"


def _from_file(path: Path, original: Composed) -> Known:
    """A retrained model; it must be of the original's architecture."""
    try:
        checkpoint = load(str(path), Description())
    except (UnsafeInputError, UsageError) as error:
        if any(option in error.hint for option in TOLD_TO_ADD):
            error.hint = "add it as a model, which takes that option, merge that to a .safetensors, and name this one"
        raise
    same = ("architecture", "arguments")
    for field in same:
        theirs, ours = getattr(checkpoint.spec, field), getattr(original.spec, field)
        if theirs != ours:
            raise WrongBaseError(
                f"the reference {path.name} has the {field} {theirs}, the model {ours}",
                "a reference is the same network, trained without the classes",
            )
    if checkpoint.spec.preprocessing.input_size != original.spec.preprocessing.input_size:
        raise WrongBaseError(f"the reference {path.name} takes images of another size")
    return Known(path.name, checkpoint.spec, checkpoint.spec.classes, checkpoint.weights)


def _adapted(asked: str) -> str:
    """The blocks that an attacker adapts: those that forgetting was told to, else all."""
    return "all" if asked in {"", "auto"} else asked


def _known(composed: Composed) -> Known:
    return Known(composed.version.ref, composed.spec, composed.knowledge.classes, composed.weights)


def _seen(operation: Version, original: Composed) -> tuple[str, ...]:
    """The names of the sources that ``operation`` on ``original`` drew on, first that of the forgotten."""
    told = operation.spec.get("retain_source")
    return (operation.spec["source"], *([told] if told else original.knowledge.sources))


def _at(registry: Registry, version: Version, depth: int) -> Version:
    """The version at ``depth`` of the stack below ``version``; 0 is the base."""
    return registry.stack(version)[depth - 1] if depth else registry.resolve(f"{version.model}@base")


def _controls(subject: Subject, sources: Sequence[Source], request: Request) -> tuple[list[Source], tuple[str, ...]]:
    known = {*subject.audited.rows, *subject.original.rows}
    found = [open_source(request.control)] if request.control else list(sources)
    trained, tested = ({s.label for o in found for s in part(o, o.classes)} for part in (training_part, test_part))
    classes = tuple(sorted((trained & tested) - known))
    if request.control and len(classes) < FEWEST_CONTROLS:
        raise DataError(
            f"{request.control} has {len(classes)} never-known classes with images to train and images to test on",
            f"a control needs at least {FEWEST_CONTROLS}",
        )
    return found, classes


Cut = Callable[[Source, Collection[str]], list[Sample]]


def _find(sources: Sequence[Source], classes: Collection[str], part: Cut) -> Chosen:
    """The samples of each class from the first source that has it."""
    chosen: Chosen = []
    left = set(classes)
    for source in sources:
        samples = part(source, left & set(source.classes))
        if samples:
            chosen.append((source, samples))
        left -= {s.label for s in samples}
    return chosen


def _trimmed(chosen: Chosen, seed: int) -> Chosen:
    return [(source, take(s, dict.fromkeys(by_class(s), TARGET_MOST), f"audit {seed}")) for source, s in chosen]


def _shared(chosen: Chosen, seed: int) -> Chosen:
    def size(samples: Sequence[Sample]) -> int:
        return max(RETAIN_LEAST, round(RETAIN_SHARE * len(samples)))

    return [
        (source, take(s, {label: size(own) for label, own in by_class(s).items()}, f"audit {seed}"))
        for source, s in chosen
    ]


def _require(chosen: dict[str, Chosen], subject: Subject, names: Sequence[str]) -> None:
    """Every target has images on both sides, and something is retained."""
    for part in ("forget train", "forget test"):
        have = {s.label for _, samples in chosen[part] for s in samples}
        for name in subject.targets:
            if name not in have:
                raise DataError(f"{', '.join(names)} has no {part.split()[1]} image of {name!r}", "name it: --data DIR")
    for part in ("retain train", "retain test"):
        if not count(chosen[part]):
            raise DataError(f"{', '.join(names)} has no {part.split()[1]} image of any retained class")
