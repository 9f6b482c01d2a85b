"""What the registry hands out: models, versions and history entries, all frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A registered checkpoint; it never changes, only its head moves."""

    name: str
    task: str
    source: str
    spec: dict[str, Any]
    classes: list[str]
    fingerprint: str
    """Hash of the base's tensors, as the caller computed it."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    head: int
    created: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Version:
    """One state of a model: the base (number 0), or a parent and one adapter."""

    model: str
    number: int
    parent: int | None
    kind: str
    """'base', 'learn', 'forget', ..."""
    method: str
    spec: dict[str, Any]
    state: dict[str, Any]
    adapter: str
    """Fingerprint of the adapter's tensors; empty for the base."""
    weights: str
    """Fingerprint of the composed weights."""
    fingerprint: str
    """Of the stack: the parent's stack fingerprint and the adapter's, hashed; the base's is the model's."""
    files: dict[str, str]
    metrics: dict[str, float]
    note: str
    created: str
    tags: list[str]
    size: int
    """Bytes of all its files."""

    @property
    def ref(self) -> str:
        """The version's name: 'faces@3', 'faces@base'."""
        return reference(self.model, self.number)


@dataclass(frozen=True)
class Attempt:
    """An operation that was begun, and how it ended."""

    id: int
    model: str
    branch: str
    parent: int
    """Number of the version it began on."""
    kind: str
    method: str
    spec: dict[str, Any]
    command: str
    environment: dict[str, Any]
    user: str
    started: str
    state: str
    """'running', 'done', 'failed', 'interrupted' or 'abandoned' (it ended without a commit)."""
    ended: str | None
    error: str | None
    version: int | None
    """Number of the version it made."""


@dataclass(frozen=True)
class Event:
    """One entry of the history, chained to the one before."""

    seq: int
    time: str
    model: str | None
    action: str
    number: int | None
    """The version it is about, or the head after it."""
    previous: int | None
    """The head before it, where it moved one."""
    command: str
    user: str
    payload: dict[str, Any]
    digest: str
    parent_digest: str


def reference(model: str, number: int) -> str:
    """How a version is written: 'faces@3', 'faces@base'."""
    return f"{model}@{number or 'base'}"
