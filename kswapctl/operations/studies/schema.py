"""What a study declares: the base, the data, who competes, over which classes, in which order, with which seeds."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from kswapctl.errors import NotFoundError, UsageError, nearest, told_at
from kswapctl.methods import Method, find_method
from kswapctl.operations.documents import Document, parse_document, read_document
from kswapctl.operations.plan import Setting
from kswapctl.spec import MOST_SEED, Kind

Column = Literal[
    "Acc_r", "Acc_l", "Acc_f", "Acc_o", "Acc_a", "H", "drop", "drop_a", "ratio", "blocks", "size", "seconds"
]


KINDS: dict[str, Kind] = {"l": "learn", "f": "forget"}
"""What a letter of an order stands for."""


class Recipe(Document):
    """A method with its values."""

    method: str
    preset: str = "default"
    set: dict[str, Setting] = Field(default_factory=dict)

    def settings(self) -> dict[str, str]:
        """The values as text, as the command line would have them."""
        return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in self.set.items()}

    def configured(self, kind: Kind) -> Method:
        """The method itself, with all its values."""
        return find_method(self.method, kind).configure(self.preset, self.settings())


class Contender(Document):
    """One line of the comparison: how it learns and how it forgets."""

    name: str
    learn: Recipe | None = None
    forget: Recipe | None = None
    retain_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the retained training images that is rehearsed."""
    splits: tuple[str, ...] = ()
    """Splits it takes part in; empty: all."""
    orders: tuple[str, ...] = ()
    """Beginnings of the study's orders that it runs; empty: all orders, whole."""

    def recipe(self, kind: Kind) -> Recipe:
        """How it does ``kind``; :class:`UsageError` where it does not."""
        found = self.learn if kind == "learn" else self.forget
        if found is None:
            raise UsageError(f"{self.name} does not say how to {kind}", f"give it {kind}: {{method: ...}}")
        return found


class Draw(Document):
    """Forgotten classes drawn by the seed."""

    classes: Annotated[int, Field(ge=1)]
    """Classes a task."""
    tasks: Annotated[int, Field(ge=1)] = 1
    """Tasks in a row, no class in two of them."""


class Lesson(Document):
    """One of several learning tasks in a row."""

    data: str
    """Where the images are."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]


class Split(Document):
    """Which classes come and go."""

    name: str
    learn_data: str = ""
    """Where the images of the classes to learn are."""
    learn: tuple[str, ...] = ()
    """The classes to learn; empty: all of ``learn_data`` that the base does not know."""
    lessons: tuple[Lesson, ...] = ()
    """Instead of ``learn_data`` and ``learn``: what is learned in several tasks in a row."""
    forget: tuple[tuple[str, ...], ...] = ()
    """The classes to forget, a list for each task in a row."""
    draw: Draw | None = None
    """Instead of ``forget``."""
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    """Few-shot: training images of each class, changed or retained."""
    missing: Annotated[int, Field(ge=0)] = 0
    """Retained classes, drawn by the seed, of which there are no images at all."""


class Study(Document):
    """The whole file."""

    version: Literal[1]
    name: str
    title: str
    needs: dict[str, str]
    """Names of what the user must point to, with what each is."""
    base: str
    """The checkpoint: a name in ``needs``, or a path."""
    data: str
    """The base's own data: a name in ``needs``, or a path."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=MOST_SEED)], ...], Field(min_length=1)] = (0, 1, 2)
    contenders: Annotated[tuple[Contender, ...], Field(min_length=1)]
    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    orders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Sequences of l and f; each letter is one operation, and is measured."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]

    @field_validator("seeds")
    @classmethod
    def _apart(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice")
        return seeds

    @field_validator("orders")
    @classmethod
    def _letters(cls, orders: tuple[str, ...]) -> tuple[str, ...]:
        for order in orders:
            if not order or set(order) - {"l", "f"}:
                raise ValueError("an order is made of l and f")
        return orders


def shipped() -> dict[str, str]:
    """Names of the studies that come with kswapctl, and their text."""
    folder = files("kswapctl") / "studies"
    return {f.name.removesuffix(".yaml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".yaml")}


def read_study(name: str) -> Study:
    """A shipped study by its name, or one in a file; all its methods and values are checked."""
    known = shipped()
    if name in known:
        study = parse_document(known[name], Study, f"{name}.yaml")
    elif Path(name).suffix in {".yaml", ".yml"}:
        study = read_document(Path(name), Study)
    else:
        raise NotFoundError(f"no study {name!r}", f"{nearest(name, known)}; or give a .yaml file")
    with told_at(f"{name}.yaml" if name in known else Path(name).name):
        _check(study)
    return study


def settled(study: Study, given: dict[str, str]) -> dict[str, str]:
    """``given`` with whole paths, so that however they are typed they name the same cells; a name that is not needed
    is a :class:`UsageError`.
    """
    for name in given:
        if name not in study.needs:
            raise UsageError(f"study {study.name} needs no {name!r}", nearest(name, study.needs))
    return {name: str(Path(p).resolve()) if Path(p).exists() else p for name, p in given.items()}


def place(study: Study, given: dict[str, str], name: str) -> str:
    """Where ``name`` is: what the user gave for it, or ``name`` itself where it is no name of the study's needs."""
    if name in given:
        return given[name]
    if name in study.needs:
        raise UsageError(f"study {study.name} needs {name}: {study.needs[name]}", f"name it: --use {name}=PATH")
    return name


def _check(study: Study) -> None:
    known = [s.name for s in study.splits]
    for what, names in (("contender", [c.name for c in study.contenders]), ("split", known)):
        if twice := [n for n in names if names.count(n) > 1]:
            raise UsageError(f"two {what}s are called {twice[0]!r}", "each row of the table needs a name of its own")
    for index, contender in enumerate(study.contenders):
        for order in contender.orders:
            if not any(whole.startswith(order) for whole in study.orders):
                raise UsageError(
                    f"{contender.name} runs {order!r}, with which no order begins", nearest(order, study.orders)
                )
        letters = {letter for order in contender.orders or study.orders for letter in order}
        for letter, kind in KINDS.items():
            if letter in letters:
                with told_at(f"contenders[{index}]"):
                    recipe = contender.recipe(kind)
                with told_at(f"contenders[{index}].{kind}"):
                    recipe.configured(kind)
        for name in contender.splits:
            if name not in known:
                raise UsageError(f"{contender.name} names the split {name!r}, which there is not", nearest(name, known))
    letters = {letter for order in study.orders for letter in order}
    for split in study.splits:
        for one, other in (("forget", "draw"), ("learn", "lessons"), ("learn_data", "lessons")):
            if getattr(split, one) and getattr(split, other):
                raise UsageError(f"split {split.name!r} has both {one} and {other}", "leave one of them out")
        if "f" in letters and not (split.forget or split.draw):
            raise UsageError(f"split {split.name!r} has nothing to forget", "give it forget or draw")
        if "l" in letters and not (split.learn_data or split.lessons):
            raise UsageError(f"split {split.name!r} has nothing to learn", "give it learn_data or lessons")
        if "l" in letters and (split.images_per_class or split.missing):
            raise UsageError(
                f"split {split.name!r} cuts the base's images, and learns",
                "images_per_class and missing are for forgetting",
            )
