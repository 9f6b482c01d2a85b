"""The header of a safetensors file: everything it promises is checked before a tensor is read.

https://huggingface.co/docs/safetensors: eight bytes of length, JSON, then the tensors' bytes, end to end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kswapctl.errors import NotFoundError, UnsafeInputError
from kswapctl.models.strict import UnfitError, fit, parse

LARGEST = 8 * 2**20
"""Bytes of header; a network of ten thousand tensors has one."""
LONGEST = 512
"""Characters of a tensor's name."""
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip
"""Bytes of one number, by dtype."""


@dataclass(frozen=True)
class Entry:
    """One tensor, as promised."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors in a safetensors file, by name; a file that is not exactly what its header says is refused."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST):
                raise _unsound(path, f"a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"no such file: {path}") from error
    header = parse(text, f"the header of {path.name}")
    try:
        return _check(header, size - 8 - length)
    except UnfitError as error:
        raise _unsound(path, str(error)) from error


def _check(header: Any, total: int) -> dict[str, Entry]:
    fit(header, lambda value: isinstance(value, dict), "header")
    metadata = header.pop("__metadata__", {})
    fit(metadata, lambda value: isinstance(value, dict), "metadata")
    for value in metadata.values():
        fit(value, str, "metadata")
    for name, entry in header.items():
        fit(name, _is_name, "the name of a tensor")
        fit(entry, _SHAPE, name)
    _check_tiling(header, total)
    return {name: Entry(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def _check_tiling(header: dict[str, Any], total: int) -> None:
    """The tensors' bytes lie end to end: none overlap, none are left over."""
    at = 0
    for begin, end, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        wanted = prod(header[name]["shape"]) * BYTES[header[name]["dtype"]]
        if begin != at or end - begin != wanted:
            raise UnfitError(f"{name} claims bytes {begin} to {end}, it should be {at} to {at + wanted}")
        at = end
    if at != total:
        raise UnfitError(f"the tensors have {at} bytes, the file has {total}")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= LONGEST and name.isprintable() and ".." not in name and not set(name) & set("/\\")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


_SHAPE = {
    "dtype": lambda value: isinstance(value, str) and value in BYTES,
    "shape": lambda value: isinstance(value, list) and len(value) <= 8 and all(map(_is_size, value)),
    "data_offsets": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)),
}


def _unsound(path: Path, reason: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"{path.name} is not a sound safetensors file ({reason})", "convert it where it was made, or fetch it again"
    )
