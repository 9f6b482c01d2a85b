"""Show what two versions of a model answer to the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kswap_registry import Registry, Version
from torch import Tensor

from kswapctl.analysis.pictures import Column, Pick, draw_side_by_side, pick_samples
from kswapctl.data.images import Images
from kswapctl.errors import NotFoundError, UsageError, nearest
from kswapctl.evaluation.predict import predict
from kswapctl.export.files import check_free, outside, written_whole
from kswapctl.operations.look import test_images
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Progress
from kswapctl.spec import Knowledge, listed
from kswapctl.tasks import TASKS

MOST = 4
"""Classes of each set, where none is named."""
FORMATS = (".png", ".svg")

Groups = Sequence[tuple[str, Sequence[str]]]
"""Title and classes of each set that is shown."""


@dataclass(frozen=True)
class Request:
    """What to draw, and where."""

    output: Path
    classes: tuple[str, ...] = ()
    """Classes to show; empty means the first few of what was learned, forgotten and retained."""
    each: int = 2
    """Images of each class."""
    data: tuple[str, ...] = ()
    """Where the images come from; empty means what the stack was trained with."""
    overwrite: bool = False
    skip_bad: bool = False
    """Leave out images that cannot be read."""


@dataclass(frozen=True)
class Drawing:
    """Picked images, and what is marked on and answered to them."""

    picks: tuple[Pick, ...]
    pixels: Tensor
    """(P, C, H, W) uint8."""
    columns: tuple[Column, ...]
    """Marks, the earlier version's answers, the later one's."""
    keys: tuple[str, ...]
    """Names of the picked images."""

    def write(self, path: Path) -> None:
        """As PNG or SVG, by the suffix."""
        draw_side_by_side(path, self.picks, self.pixels, self.columns)

    def said(self) -> list[dict[str, Any]]:
        """Each image with the class it shows, and its classes as marked, before and after."""
        return [
            {"image": self.keys[line], "class": pick.name, "set": pick.title}
            | {
                name: column.describe(line)
                for name, column in zip(("marked", "before", "after"), self.columns, strict=True)
            }
            for line, pick in enumerate(self.picks)
        ]


def show_predictions(
    registry: Registry, before: Version, after: Version, request: Request, progress: Progress
) -> Drawing:
    """Draw test images as they are marked and as both versions answer, to ``request.output``."""
    if before.model != after.model:
        raise UsageError(f"{before.ref} and {after.ref} are of different models", "compare versions of one model")
    outside(registry.folder, request.output)
    check_free(request.output, request.overwrite)
    if request.output.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot draw {request.output.name}", "name a .png or .svg")
    pair = (load_version(registry, before), load_version(registry, after))
    either = _either(pair)
    for name in request.classes:
        if name not in either.classes:
            raise NotFoundError(f"neither version has a class {name!r}", nearest(name, either.classes))
    groups = [("named", request.classes)] if request.classes else groups_of(pair[1].knowledge)
    images = test_images(replace(pair[1], knowledge=either), request.data, request.skip_bad, progress)
    drawing = compare_answers(pair, images, groups, request.each)
    with written_whole(request.output, request.overwrite) as temporary:
        drawing.write(temporary)
    return drawing


def groups_of(knowledge: Knowledge) -> Groups:
    """The first few classes of what was learned, forgotten and retained."""
    sets = knowledge.sets()
    gone = (*sets["forgotten"], *sets["forgotten earlier"])
    return [("learned", sets["learned"][:MOST]), ("forgotten", gone[:MOST]), ("retained", sets["retain"][:MOST])]


def compare_answers(pair: tuple[Composed, Composed], images: Images, groups: Groups, each: int) -> Drawing:
    """Pick images of every class of ``groups``, and let both versions answer; :class:`NotFoundError` if none has one.

    Versions of two branches may have learned different classes: the marks are of either's.
    """
    task, spec = TASKS[pair[0].spec.task], pair[0].spec
    names = _either(pair).classes
    truth = task.show_truth(images.targets(names))
    picks = pick_samples(truth, groups, {name: row for row, name in enumerate(names)}, each)
    if not picks:
        wanted = listed(name for _, classes in groups for name in classes)
        raise NotFoundError(f"no test image has one of {wanted}", "name data that have: --data DIR")
    chosen = [pick.index for pick in picks]
    pixels = images.pixels[chosen]
    columns = [Column("marked", names, [truth[index] for index in chosen])]
    for when, composed in zip(("before", "after"), pair, strict=True):
        answers = task.show(predict(composed.network(), pixels, spec.preprocessing), spec.preprocessing.input_size[1:])
        columns.append(Column(f"{when}, {composed.version.ref}", composed.knowledge.classes, answers))
    return Drawing(tuple(picks), pixels, tuple(columns), tuple(images.samples[index].key for index in chosen))


def _either(pair: tuple[Composed, Composed]) -> Knowledge:
    """The classes and the data of both versions."""
    one, other = (composed.knowledge for composed in pair)
    classes = dict.fromkeys((*one.classes, *other.classes))
    return Knowledge(tuple(classes), sources=tuple(dict.fromkeys((*one.sources, *other.sources))))
