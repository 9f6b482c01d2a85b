"""Tensors by name: hashing them, reading and writing them as safetensors, refusing what is unsafe."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.torch_version import TorchVersion

from kswapctl.errors import DataError, DiskError, NotFoundError, UnsafeInputError, first_line
from kswapctl.models.header import read_header

METADATA = "kswapctl"
"""The one metadata key of our files: two or more keys are written in random order, and change the file's hash."""

PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle"}
"""File names under which pickled state dicts travel."""
FILES = {".safetensors", *PICKLES}
"""What names of files with weights end in; names of repositories do not."""

OLDEST_UNPICKLER = "2.10"
"""The first torch whose restricted unpickler has no known way out."""

Weights = dict[str, Tensor]


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names: the same tensors, the same hash."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file; ``metadata`` becomes JSON under one key."""
    text = {METADATA: json.dumps(metadata, sort_keys=True)} if metadata is not None else {"format": "pt"}
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, path, metadata=text)
        path.chmod(mode)  # it is written for its owner alone
    except (SafetensorError, OSError) as error:  # the first is its own for what the operating system said
        raise DiskError(f"cannot write {path.name}: {error}", "free some space, or choose another place") from error


def read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Tensors and metadata of a safetensors file; anything else under that name is refused unopened."""
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise UnsafeInputError(
            f"{path.name} is not a sound safetensors file ({error})",
            "convert it where it was made, or fetch it again",
        ) from error
    if not isinstance(metadata, dict):
        raise DataError(f"the metadata of {path.name} is no JSON object", "write it again with kswapctl merge")
    check_finite(weights, path.name)
    return weights, metadata


def read_pickle(path: Path) -> Weights:
    """A state dict from a ``.pth`` file, read by torch's restricted unpickler, which runs no code."""
    if TorchVersion(torch.__version__) < OLDEST_UNPICKLER:
        raise UnsafeInputError(
            f"torch {torch.__version__} is too old to open {path.name} safely", f"use torch {OLDEST_UNPICKLER} or newer"
        )
    _check_stored(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NotFoundError(f"no such file: {path}") from error
    except Exception as error:
        advice = type(error).__name__ == "UnpicklingError"  # torch tells how to open it all the same
        reason = "" if advice else f" ({first_line(error)})"
        raise UnsafeInputError(
            f"{path.name} holds more than tensors, or is damaged{reason}",
            "it was not opened any further; save it as .safetensors where you trust it",
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DataError(f"{path.name} holds no state dict", "save model.state_dict()")
    weights = {str(k).removeprefix("module."): v for k, v in loaded.items()}
    check_finite(weights, path.name)
    return weights


def _check_stored(path: Path) -> None:
    """Torch stores its members as they are; one that is compressed could unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the older form, or none: the restricted unpickler tells
    squeezed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if squeezed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UnsafeInputError(f"{path.name} is compressed, which torch never does", "save it as .safetensors")


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """A NaN or infinity anywhere is a :class:`DataError` that names the tensor."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"{where} holds NaN or infinity in {name}", "use an earlier checkpoint")


def in_full(weights: Mapping[str, Tensor]) -> Weights:
    """Copies, floats in 32 bits: adapters are added in these, and half as many bits would round each addition."""
    return {
        k: v.detach().to(torch.float32 if v.is_floating_point() else v.dtype, copy=True) for k, v in weights.items()
    }
