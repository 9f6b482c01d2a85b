"""Give a version away: gather its stack and every file of it, proven, into a bundle. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kswap_registry import Registry, Version

from kswapctl.errors import UsageError
from kswapctl.export import bundle as bundles
from kswapctl.export.files import check_free, written_whole
from kswapctl.export.manifest import Base, Listed, Manifest, Step
from kswapctl.export.signature import sign_manifest
from kswapctl.operations.points import point


@dataclass(frozen=True)
class Parcel:
    """What is given away: the list, and where each file of it lies."""

    version: Version
    manifest: Manifest
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(listed.size for listed in self.manifest.members().values())


@dataclass(frozen=True)
class Bundled:
    """A bundle that was written."""

    parcel: Parcel
    digest: str
    """SHA-256 of the file: tell it to the receiver on another way."""


def gather(registry: Registry, version: Version, with_base: bool, only: bool = False) -> Parcel:
    """The stack of ``version``, or ``only`` its own adapter; every file is read once, to prove it."""
    model = registry.model(version.model)
    stack = registry.stack(version)[-1:] if only else registry.stack(version)
    if not stack and not with_base:
        raise UsageError(f"{version.ref} has no adapter to share", "name a version, or say --with-base")
    base = Base(
        name=model.name,
        task=model.task,
        source=model.source,
        spec=model.spec,
        classes=model.classes,
        fingerprint=model.fingerprint,
        files=_list(registry, model.files) if with_base else {},
    )
    below = registry.resolve(f"{model.name}@{stack[0].parent or 'base'}") if stack else version
    steps = tuple(_step(registry, entry) for entry in stack)
    manifest = Manifest(base, below.fingerprint, steps)
    paths = {listed.sha256: registry.blob(listed.sha256) for listed in manifest.members().values()}
    return Parcel(version, manifest, {name: paths[listed.sha256] for name, listed in manifest.members().items()})


@dataclass(frozen=True)
class Wish:
    """What a bundle is to be."""

    output: Path
    with_base: bool = False
    """Also the base's tensors."""
    only: bool = False
    """Only the version's own adapter, not those below."""
    overwrite: bool = False
    key: Path | None = None
    """Sign with this private key (PEM)."""


def bundle(registry: Registry, version: Version, wish: Wish, command: str) -> Bundled:
    """Write a version's stack into one file that ``kswapctl import`` reads."""
    output = wish.output
    if registry.folder.resolve() in output.resolve().parents:
        raise UsageError(f"{output} is inside the registry", "choose another place")
    check_free(output, wish.overwrite)
    registry.require_writable()
    parcel = gather(registry, version, wish.with_base, wish.only)
    signature = sign_manifest(parcel.manifest, wish.key) if wish.key else None
    with written_whole(output, wish.overwrite) as temporary:
        bundles.write(temporary, parcel.manifest, parcel.files, signature)
        digest = bundles.digest_of(temporary)
        point("bundle.after_write")
    point("bundle.after_rename")
    payload = {"file": output.name, "fingerprint": version.fingerprint, "base": wish.with_base, "sha256": digest}
    registry.record(version.model, "bundle", payload, number=version.number, command=command)
    return Bundled(parcel, digest)


def _step(registry: Registry, version: Version) -> Step:
    return Step(
        number=version.number,
        kind=version.kind,
        method=version.method,
        spec=version.spec,
        state=version.state,
        adapter=version.adapter,
        weights=version.weights,
        fingerprint=version.fingerprint,
        metrics=version.metrics,
        note=version.note,
        created=version.created,
        files=_list(registry, version.files),
    )


def _list(registry: Registry, files: Mapping[str, str]) -> dict[str, Listed]:
    return {name: Listed(digest, registry.blob(digest, verify=True).stat().st_size) for name, digest in files.items()}
