"""The header of a safetensors file is proven before a tensor is read: each lie is refused, and costs nothing."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from kswapctl.errors import NotFoundError, UnsafeInputError
from kswapctl.models.header import LARGEST, Entry, read_header


def tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SOUND = {"a": tensor(0, 8), "b": tensor(8, 8, [0]), "__metadata__": {"format": "pt"}}
BAD_NAMES = ("", "..", "a/b", "a\\b", "a\0b", "x" * 10_000)
LIES = {
    "nothing": b"",
    "seven bytes": b"1234567",
    "length of 2^63": packed(SOUND, bytes(8), 2**63),
    "length over the cap": packed(SOUND, bytes(LARGEST + 100), LARGEST + 1),
    "length beyond the file": packed(SOUND, bytes(8), 10_000),
    "cut off": packed(SOUND, bytes(7)),
    "bytes after the end": packed(SOUND, bytes(9)),
    "overlap": packed({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "gap": packed({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "end before begin": packed({"a": tensor(8, 0, [2])}, bytes(8)),
    "overflow": packed({"a": tensor(0, 8, [2**40, 2**40])}, bytes(8)),
    "negative size": packed({"a": tensor(0, 8, [-2])}, bytes(8)),
    "size that is true": packed({"a": tensor(0, 4, [True])}, bytes(4)),
    "size that is a fraction": packed({"a": tensor(0, 8, [2.0])}, bytes(8)),
    "billion ranks": packed({"a": tensor(0, 8, [10**9, 64])}, bytes(8)),
    "no such type": packed({"a": tensor(0, 8, dtype="F12")}, bytes(8)),
    "type that is a list": packed({"a": tensor(0, 8, dtype=["F32"])}, bytes(8)),
    "unknown key": packed({"a": {**tensor(0, 8), "more": 1}}, bytes(8)),
    "missing key": packed({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "two of one name": packed(b'{"a":%s,"a":%s}' % ((json.dumps(tensor(0, 8)).encode(),) * 2), bytes(8)),
    "deep": packed(b"[" * 100_000 + b"]" * 100_000),
    "metadata that is no text": packed({**SOUND, "__metadata__": {"n": 1}}, bytes(8)),
    "metadata that is a list": packed({**SOUND, "__metadata__": []}, bytes(8)),
    "a list": packed([], b""),
    "not JSON": packed(b"{]"),
    "NaN": packed(b'{"a":NaN}'),
    "not text": packed(b"\xff\xfe"),
    **{f"name {name[:9]!r}": packed({name: tensor(0, 8)}, bytes(8)) for name in BAD_NAMES},
}  # fmt: skip


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(packed(SOUND, bytes(8)))
    assert read_header(tmp_path / "x.safetensors") == {"a": Entry("F32", (2,)), "b": Entry("F32", (0,))}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_at_once(lie: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(LIES[lie])
    started = time.monotonic()
    with pytest.raises(UnsafeInputError) as error:
        read_header(tmp_path / "x.safetensors")
    assert time.monotonic() - started < 0.5
    assert "x.safetensors" in error.value.message


def test_a_header_of_four_hundred_thousand_tensors_is_not_parsed(tmp_path: Path) -> None:
    text = (
        b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(400_000)) + b"}"
    )
    (tmp_path / "x.safetensors").write_bytes(packed(text))
    started = time.monotonic()
    with pytest.raises(UnsafeInputError):
        read_header(tmp_path / "x.safetensors")
    assert time.monotonic() - started < 0.05


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError):
            read_header(path)
