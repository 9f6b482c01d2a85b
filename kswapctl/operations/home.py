"""Which registry a command means: the one named, or ``.kswap`` in this folder or the nearest above it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from kswap_registry import Registry, layout
from kswap_registry.store import OnWait

from kswapctl.errors import KswapError

FOLDER = ".kswap"
"""Name of a registry's folder."""
VARIABLE = "KSWAP_HOME"
"""Environment variable that names the registry's folder."""


class NoRegistryError(KswapError):
    """There is no registry here."""

    exit_code = 10
    kind = "no-registry"


def find_home(named: Path | None) -> Path:
    """The folder of the registry to use; :class:`NoRegistryError` where there is none."""
    if named or os.environ.get(VARIABLE):
        place = Path(named or os.environ[VARIABLE])
        if (place / FOLDER).is_dir() and not (place / layout.DATABASE).exists():
            raise NoRegistryError(f"no registry in {place}", f"there is one in {place / FOLDER}")
        return place
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FOLDER).is_dir():
            return folder / FOLDER
    raise NoRegistryError(f"no registry ({FOLDER}) in {here} or above it", "make one: kswapctl init")


def open_home(named: Path | None, *, read_only: bool = False, on_wait: OnWait | None = None) -> Registry:
    """Open the registry to use; ``on_wait`` is told for whom a writer waits."""
    return Registry.open(find_home(named), read_only=read_only, on_wait=on_wait)


def create_home(named: Path | None) -> Registry:
    """Make a registry: the one named, or ``.kswap`` in this folder."""
    return Registry.create(create_place(named))


def create_place(named: Path | None) -> Path:
    """Where a new registry goes."""
    return Path(named or os.environ.get(VARIABLE) or Path.cwd() / FOLDER)


def environment() -> dict[str, str]:
    """Versions of what computes, for the record of an operation."""
    packages = ("kswapctl", "torch", "timm", "transformers", "peft", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return versions | {"python": platform.python_version(), "machine": platform.machine()}
