"""Run a study: worker processes take cells, one thread each; what is done already is not done again."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kswap_registry import Registry, RegistryError
from kswap_registry.durable import hash_file

from kswapctl.data.sources import open_source
from kswapctl.errors import KswapError, TeamError, UsageError
from kswapctl.export.files import made_folder, written_whole
from kswapctl.models.checkpoint import Description
from kswapctl.models.transformer import CONFIG, PROCESSOR
from kswapctl.operations.models import add_model
from kswapctl.operations.studies.cells import Cell, cells_of, lessons_of, run_cell
from kswapctl.operations.studies.claims import claimed, result_file, work_off
from kswapctl.operations.studies.schema import Study, place
from kswapctl.operations.studies.workshop import MODEL, Workshop
from kswapctl.progress import Progress, Silent
from kswapctl.runtime import threads

LOOK_EVERY = 1.0
"""Seconds between looks at what the workers have done."""


def run_study(
    study: Study, given: dict[str, str], folder: Path, workers: int, progress: Progress
) -> list[dict[str, Any]]:
    """Run every cell that is not done, with ``workers`` processes (1: this one); returns all results there are.

    The same command again goes on where it stopped, and beside one that runs, also on another machine, it helps.
    """
    cells = prepare(study, given, folder)
    left = [c for c in cells if not result_file(folder, c.key).is_file()]
    progress.stage(f"{study.name}: cells {len(cells)}, done before {len(cells) - len(left)}", len(left))
    if workers == 1:
        _work(study, given, folder, progress)
    elif left:
        _in_processes(study, given, folder, min(workers, len(left)), cells, progress)
    return results_of(study, given, folder)


def prepare(study: Study, given: dict[str, str], folder: Path) -> list[Cell]:
    """The cells, once the base is named and ``folder`` is there."""
    cells = cells_of(study, given)
    base = place(study, given, study.base)
    for name in dict.fromkeys((study.data, *(data for cell in cells for data, _ in lessons_of(cell.split)))):
        open_source(place(study, given, name))  # what is not there is told before anything is left behind
    made_folder(folder)
    _check_base(Path(base), folder)
    return cells


def _check_base(base: Path, folder: Path) -> None:
    """Another checkpoint in the place of the one that was begun with would be mixed with it in one table."""
    if not base.exists():  # a name of timm or of the Hub
        return
    files = [base]
    if base.is_dir():
        files = sorted(f for f in base.iterdir() if f.name in {CONFIG, PROCESSOR} or f.suffix == ".safetensors")
    told = folder / f"base-{hashlib.sha256(str(base).encode()).hexdigest()[:8]}.sha256"
    digest = "\n".join(hash_file(f.resolve()) for f in files)
    if not told.exists():
        with written_whole(told, overwrite=True) as file:  # another worker may read it at once
            file.write_text(digest)
    elif told.read_text() != digest:
        raise UsageError(f"{base} is not the base that the study in {folder} began with", "name another folder: -o")


def results_of(study: Study, given: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """The results there are, in the order of the cells."""
    files = [result_file(folder, c.key) for c in cells_of(study, given)]
    return [json.loads(f.read_text()) for f in files if f.is_file()]


def _work(study: Study, given: dict[str, str], folder: Path, progress: Progress) -> int:
    """Take cells until none is left, on one thread; each worker has a registry of its own, which no other writes to."""
    cells = {c.key: c for c in cells_of(study, given)}

    def work(key: str) -> dict[str, Any]:
        result = run_cell(workshop, study, given, cells[key], Silent())
        progress.advance()
        return result

    # one thread, so that seconds compare however many workers there are
    with threads(1), _own_registry(study, given, folder) as registry:
        workshop = Workshop(registry, study.name)
        try:
            return work_off(folder, list(cells), work)
        finally:
            workshop.close()


@contextmanager
def _own_registry(study: Study, given: dict[str, str], folder: Path) -> Iterator[Registry]:
    """The first registry of this base and its data that no other worker has; a new one, where there is none."""
    source, data = (place(study, given, name) for name in (study.base, study.data))
    for number in itertools.count():
        home = folder / f"registry-{number}"
        with claimed(folder / "claims", home.name) as mine:
            if not mine:
                continue
            with Registry.create(home) as registry:  # opened where it is there, completed where it was cut short
                if not any(m.name == MODEL for m in registry.models()):
                    add_model(registry, MODEL, source, Description(), data, f"study {study.name}")
                start = registry.model(MODEL)
                if (start.source, start.spec["data"]) == (source, open_source(data).name):
                    yield registry
                    return


def _in_processes(
    study: Study, given: dict[str, str], folder: Path, workers: int, cells: Sequence[Cell], progress: Progress
) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and the registry's connection
    errors = context.SimpleQueue()
    with _environment({"OMP_NUM_THREADS": "1"}):
        processes = [
            context.Process(target=_child, args=(study.model_dump_json(), given, str(folder), errors), daemon=True)
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
    before = {c.key for c in cells if result_file(folder, c.key).is_file()}
    while any(p.is_alive() for p in processes):
        next(p for p in processes if p.is_alive()).join(LOOK_EVERY)
        now = {c.key for c in cells if result_file(folder, c.key).is_file()}
        progress.advance(len(now - before))
        before = now
    if not errors.empty():
        message, hint, code, kind = errors.get()
        told = KswapError(message, hint)
        told.exit_code, told.kind = code, kind
        raise told
    left = sum(not result_file(folder, c.key).is_file() for c in cells)
    if left and any(p.exitcode for p in processes):
        raise TeamError(f"a worker died, and {left} cells are left", "run the same command again to go on")


def work_alone(study: str, given: dict[str, str], folder: str) -> int:
    """A worker's whole life, wherever it runs; returns how many cells it did."""
    return _work(Study.model_validate_json(study), given, Path(folder), Silent())


def _child(study: str, given: dict[str, str], folder: str, errors: Any) -> None:
    _end_with_parent()
    try:
        work_alone(study, given, folder)
    except (KswapError, RegistryError) as error:
        errors.put((error.message, error.hint, error.exit_code, error.kind))
    except KeyboardInterrupt:  # the command itself says it
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process once the command has ended, however it did: killed, it can stop nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that the processes started within inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
