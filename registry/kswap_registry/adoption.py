"""Take in versions that were made in another registry: all of them in one transaction, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import history, names, reading, refs, writing
from .blobs import Blob
from .errors import storage_errors
from .faults import point
from .records import Version
from .writing import Change, Checkpoint

if TYPE_CHECKING:
    from .store import Registry


@dataclass(frozen=True)
class Arrival:
    """One version that was made elsewhere."""

    change: Change
    files: Mapping[str, Path]
    origin: Mapping[str, Any]
    """What the history tells of where it comes from."""


@dataclass(frozen=True)
class Landing:
    """Where the versions go: above which version of which model, on which branch."""

    model: str
    parent: int = 0
    branch: str = refs.MAIN
    """It must be at ``parent``, or not be there yet."""
    checkpoint: Checkpoint | None = None
    """Registers the model first."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The new model's files."""


def adopt(registry: Registry, landing: Landing, arrivals: Sequence[Arrival], command: str = "import") -> Version:
    """Register the arrivals one above the other, and move the branch to the last; the caller vouches for them."""
    names.check_model_name(landing.model)
    if landing.branch != refs.MAIN:
        names.check_label(landing.branch, "branch")
    with registry.exclusive(command):
        base = registry.store.add_all(landing.files)
        stored = [(arrival, registry.store.add_all(arrival.files)) for arrival in arrivals]
        with storage_errors(registry.folder):
            point("adopt.before_rows")
            with registry.database.writing():
                if landing.checkpoint is not None:
                    _register(registry, landing.checkpoint, base, command)
                    point("adopt.after_model")
                top = _stack(registry, landing, stored, command)
            point("adopt.after_commit")
    return registry.resolve(f"{landing.model}@{top or 'base'}")


def _register(registry: Registry, checkpoint: Checkpoint, blobs: Mapping[str, Blob], command: str) -> None:
    writing.check_blobs(registry.store, blobs)
    writing.insert_model(registry.database, checkpoint, blobs)
    payload = writing.told(registry.database, checkpoint.name)
    history.append(registry.database, action="add", model=checkpoint.name, number=0, command=command, payload=payload)


def _stack(
    registry: Registry, landing: Landing, stored: Sequence[tuple[Arrival, Mapping[str, Blob]]], command: str
) -> int:
    database = registry.database
    model = refs.model_row(database, landing.model)
    if refs.branch_head(database, model, landing.branch) is None:
        writing.insert_branch(database, model, landing.branch, landing.parent)
        payload: dict[str, Any] = {"branch": landing.branch}
        history.append(
            database, action="branch", model=landing.model, number=landing.parent, command=command, payload=payload
        )
    parent = landing.parent
    for arrival, blobs in stored:
        writing.check_blobs(registry.store, blobs)
        number = writing.insert_version(database, model, parent, arrival.change, blobs)
        writing.move_head(database, writing.Move(model, landing.branch, parent, number))
        written = reading.version(database, model, number)
        payload = {
            "branch": landing.branch,
            "method": written.method,
            "spec": written.spec,
            "fingerprint": written.fingerprint,
            "files": written.files,
            "record": reading.digest_of(database, model, number),
            "origin": dict(arrival.origin),
        }
        history.append(
            database,
            action="import",
            model=landing.model,
            number=number,
            previous=parent,
            command=command,
            payload=payload,
        )
        point("adopt.after_one")
        parent = number
    return parent
