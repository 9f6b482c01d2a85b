"""Mutated bundles and safetensors files: refused with one of our errors or read as they were, never a traceback."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import save

from kswapctl.errors import KswapError
from kswapctl.export import bundle, manifest
from kswapctl.export.manifest import Base, Listed, Manifest, Step
from kswapctl.models.foreign import check_config
from kswapctl.models.header import read_header
from kswapctl.models.weights import fingerprint, read

FEW, MANY = 2_000, 50_000
"""Inputs of each reader, in the default suite and with ``-m slow``."""
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.int64)}
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 2.0, "target_modules": ["fc"], "modules_to_save": None,
    "base_model_name_or_path": "digits", "bias": "none",
}  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a thing."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to three changes: a bit, a byte, a cut, a part twice, a part of zeros, an odd number, digits."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at, length = draw.randrange(len(data)), draw.choice((1, 2, 4, 8, 40))
        data = draw.choice(CHANGES)(data, at, length, draw) or b"\0"
    return data


def _flip(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _byte(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[:at] + draw.choice((b'"', b"[", b"{", b"}", b"9", b"\0", b"\xff", b"-", b",")) + data[at + 1 :]


def _cut(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return draw.choice((data[:at], data[at:], data[:at] + data[at + length :]))


def _twice(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[: at + length] + data[at:]


def _zeros(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[:at] + bytes(length) + data[at + length :]


def _number(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    odd = draw.choice((0, 1, 0x7F, 0xFF, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
    return data[:at] + struct.pack("<Q", odd)[: draw.choice((2, 4, 8))] + data[at + 8 :]


def _digits(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[:at] + draw.choice((b"1e999", b"NaN", b"9" * 30, b"[" * 200, b"null", b'"a":1,')) + data[at + length :]


CHANGES = (_flip, _byte, _cut, _twice, _zeros, _number, _digits)


def sample(folder: Path) -> tuple[Manifest, dict[str, Path]]:
    """A small manifest with its files."""
    contents = {"adapter_config.json": json.dumps(CONFIG).encode(), "adapter_model.safetensors": save(TENSORS)}
    files = {}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        files[name] = Listed(_sha256(data), len(data))
    preprocessing = {
        "input_size": [3, 8, 8], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0,
        "crop_mode": "center",
    }  # fmt: skip
    spec = {
        "architecture": "resnet18", "arguments": {}, "classes": ["a"], "preprocessing": preprocessing,
        "task": "classification", "classifier": "fc", "blocks": [{"name": "fc", "layers": ["fc"]}], "parameters": 9,
        "data": "",
    }  # fmt: skip
    change = {"kind": "learn", "classes": ["a"], "method": "m", "preset": "p", "source": "s", "seed": 0}
    state = {
        "classes": ["a"], "learned": {"a": 1}, "forgotten": {}, "sources": ["s"],
        "record": {"steps": 1, "met": True, "changed blocks": [], "data": {}},
    }  # fmt: skip
    base = Base("digits", "classification", "s", spec, ["a"], "0" * 64, {})
    top, adapter = _sha256(b"0" * 64 + b"1" * 64), "1" * 64
    step = Step(
        1, "learn", "m", change, state, adapter, "2" * 64, top, {"retain": 0.5}, "", "2026-01-01T00:00:00", files
    )
    made = Manifest(base, "0" * 64, (step,))
    return made, {name: folder / name.rpartition("/")[2] for name in made.members()}


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def read_bundle(path: Path, target: Path) -> str:
    """All of a bundle; what it is when it was read."""
    opened = bundle.open_bundle(path)
    for name, listed in opened.manifest.members().items():
        opened.fetch(name, listed, target)
    return opened.manifest.dump().decode()


def fuzz(data: bytes, count: int, look: Callable[[bytes], object]) -> Counter[str]:
    """How often each error came; 'read' where there was none."""
    found: Counter[str] = Counter()
    draw = random.Random(20261121)
    for _ in range(count):
        changed = mutate(data, draw)
        try:
            look(changed)
            found["read"] += 1
        except KswapError as error:
            found[error.kind] += 1
    return found


def fuzz_bundles(folder: Path, count: int) -> Counter[str]:
    made, files = sample(folder)
    path, target = folder / "x.kswap", folder / "out"
    bundle.write(path, made, files)
    whole = path.read_bytes()
    sound = read_bundle(path, target)

    def look(changed: bytes) -> None:
        path.write_bytes(changed)
        assert read_bundle(path, target) == sound
        assert changed == whole  # no changed bundle is read

    return fuzz(whole, count // 2, look) + fuzz(made.dump(), count // 2, lambda data: _same(manifest.load(data), made))


def _same(one: Manifest, other: Manifest) -> None:
    assert one == other


def fuzz_tensors(folder: Path, count: int) -> Counter[str]:
    path = folder / "x.safetensors"
    whole = save(TENSORS, metadata={"format": "pt"})

    def look(changed: bytes) -> None:
        path.write_bytes(changed)
        weights, _ = read(path)
        assert sum(t.numel() * t.element_size() for t in weights.values()) <= len(changed)
        assert read_header(path).keys() == weights.keys()
        fingerprint(weights)

    head = whole[: 8 + int.from_bytes(whole[:8], "little")]
    return fuzz(whole, count // 2, look) + fuzz(head, count // 2, lambda data: look(data + whole[len(head) :]))


READERS = {"bundle": fuzz_bundles, "safetensors": fuzz_tensors}


@pytest.mark.parametrize("reader", READERS)
def test_no_mutation_gets_further_than_an_error(reader: str, folder: Path) -> None:
    found = READERS[reader](folder, FEW)
    assert sum(found.values()) == FEW
    assert found.keys() <= {"unsafe-input", "integrity", "bad-data", "wrong-base", "read"}


def test_no_mutated_configuration_gets_further_than_an_error() -> None:
    found = fuzz(json.dumps(CONFIG).encode(), FEW, check_config)
    assert found.keys() <= {"unsafe-input", "read"}


@pytest.mark.slow
def test_a_hundred_thousand_mutations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: look(folder, MANY) for name, look in READERS.items()}
    with capsys.disabled():
        sys.stdout.write(f"\n{sum(sum(c.values()) for c in counts.values())} inputs, {counts}\n")


@pytest.mark.parametrize("key", ["modules_to_save", "target_modules"])
def test_a_configuration_without_an_optional_key_is_read(key: str) -> None:
    form = check_config(json.dumps({k: v for k, v in CONFIG.items() if k != key}).encode())
    assert form.rank == 2
