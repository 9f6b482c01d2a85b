"""Push a version's stack to a place, and pull one from there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kswap_registry import Registry, Version

from kswapctl.errors import DiskError, NotFoundError
from kswapctl.export import bundle as bundles
from kswapctl.export.manifest import Manifest
from kswapctl.export.signature import check_signature
from kswapctl.operations.places import HUB, MovedError, open_place
from kswapctl.operations.share import Parcel, gather
from kswapctl.progress import Progress

if TYPE_CHECKING:
    from kswapctl.operations.receive import Received


@dataclass(frozen=True)
class Pushed:
    """Where a version is found from now on."""

    parcel: Parcel
    place: str
    """What to pull from."""


def push(registry: Registry, version: Version, name: str, *, with_base: bool, public: bool, command: str) -> Pushed:
    """Publish a version's whole stack; what is there already must be a part of it, and a base that is there stays."""
    registry.require_writable()
    place = open_place(name, public)
    with _disk_errors(name):
        there = place.manifest()
        with_base = with_base or bool(there and there.base.files)  # what is there already is not taken away
        parcel = gather(registry, version, with_base)
        _check_follows(parcel.manifest, there, name)
        where = place.publish(parcel.manifest, parcel.files, f"{version.ref}: {version.kind}")
    payload = {"to": where, "fingerprint": version.fingerprint, "base": with_base}
    registry.record(version.model, "push", payload, number=version.number, command=command)
    return Pushed(parcel, where)


def pull(registry: Registry, name: str, model: str, branch: str, command: str, progress: Progress) -> Received:
    """Take in what a place holds, as ``model``."""
    from kswapctl.operations.receive import Delivery, receive

    place = open_place(name)
    with _disk_errors(name):
        manifest = place.manifest()
        if manifest is None:
            raise NotFoundError(
                f"there is no shared model in {name}",
                "check the name" + ("; private ones need hf auth login" if name.startswith(HUB) else ""),
            )
        return receive(registry, Delivery(manifest, place, name, model, branch), command, progress)


@dataclass(frozen=True)
class Trust:
    """By what the receiver of a bundle knows it for the giver's."""

    sha256: str = ""
    """The file's hash, where its giver told it on another way."""
    key: Path | None = None
    """The giver's public key (PEM): a bundle that is not signed with it is refused."""


def take(
    registry: Registry, path: Path, trust: Trust, command: str, progress: Progress, *, model: str = "", branch: str = ""
) -> Received:
    """Take in a bundle, as ``model`` or what it says, on ``branch`` or the main line."""
    from kswapctl.operations.receive import Delivery, receive

    opened = bundles.open_bundle(path, trust.sha256)
    check_signature(opened.signature, opened.manifest, trust.key)
    return receive(registry, Delivery(opened.manifest, opened, path.name, model, branch), command, progress)


def _check_follows(ours: Manifest, theirs: Manifest | None, name: str) -> None:
    """Theirs is a part of ours, else it would be lost."""
    if theirs is None:
        return
    stacks = {ours.parent, *(step.fingerprint for step in ours.steps)}
    if theirs.base.fingerprint != ours.base.fingerprint or theirs.top not in stacks:
        raise MovedError(
            f"{name} holds {theirs.base.name} with {len(theirs.steps)} versions that are not below this one",
            "pull it first, or push to another place",
        )


@contextlib.contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    """A place that is missing or closed to us is no bug."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{name} is not there: {error.strerror or error}", "check the name") from error
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise DiskError(
            f"{name} cannot be used: {error.strerror or error}", "check its rights, or name another place"
        ) from error
