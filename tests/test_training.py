"""How training spends its time: caching, processes, the choice of blocks. None of it may change a result."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kswap_registry import Registry
from torch import nn

from kswapctl.errors import DiskError
from kswapctl.methods import Method
from kswapctl.operations.versions import load_version
from kswapctl.runtime import pick_precision
from kswapctl.spec import Targets
from kswapctl.tasks import TASKS
from kswapctl.training import loop
from kswapctl.training.cache import Cache, key_of
from kswapctl.training.pool import chunk_of
from kswapctl.training.screen import shortest
from kswapctl.training.team import Team

Run = Callable[..., Any]
CPU = torch.device("cpu")
FORGET = ("forget", "digits", "--classes", "two", "--preset", "few", "--precision", "fp32", "--blocks", "last:2")


@pytest.mark.parametrize("unit", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_a_cpu_trains_in_bf16_where_either_of_its_units_multiplies_it(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, each, lambda: False)
    assert pick_precision("auto", CPU) is torch.float32
    monkeypatch.setattr(torch.cpu, unit, lambda: True)
    assert pick_precision("auto", CPU) is torch.bfloat16
    assert pick_precision("fp32", CPU) is torch.float32


def weights(home: Path) -> dict[str, torch.Tensor]:
    with Registry.open(home, read_only=True) as registry:
        return load_version(registry, registry.resolve("digits")).weights


def copies(fresh: Path, tmp_path: Path, *names: str) -> list[Path]:
    return [Path(shutil.copytree(fresh, tmp_path / name)) for name in names]


def test_no_cache_memory_and_files_give_the_same_adapter(fresh: Path, tmp_path: Path, invoke) -> None:
    homes = copies(fresh, tmp_path, "memory", "none", "files", "again")
    folder = tmp_path / "cache"
    options = ((), ("--cache-gb", "0"), ("--cache-dir", folder), ("--cache-dir", folder))
    for home, more in zip(homes, options, strict=True):
        assert invoke(home, *FORGET, *more).code == 0
    expected = weights(homes[0])
    assert all(torch.equal(value, weights(home)[name]) for home in homes[1:] for name, value in expected.items())


def test_in_bf16_the_cache_changes_no_accuracy(fresh: Path, tmp_path: Path, invoke) -> None:
    homes = copies(fresh, tmp_path, "memory", "none")
    found = []
    for home, room in zip(homes, ("2", "0"), strict=True):
        assert invoke(home, *FORGET, "--precision", "bf16", "--cache-gb", room).code == 0
        found.append(invoke(home, "eval", "digits", "--json").json)
    assert found[0] == found[1]


def test_a_second_operation_finds_what_the_first_kept(fresh: Path, tmp_path: Path, invoke, monkeypatch) -> None:
    one, two = copies(fresh, tmp_path, "one", "two")
    folder = tmp_path / "cache"
    assert invoke(one, *FORGET, "--cache-dir", folder).code == 0
    kept = sorted(folder.iterdir())
    assert kept
    monkeypatch.setattr("kswapctl.training.pool.Maker._fill", None)  # what is found need not be computed
    assert invoke(two, *FORGET, "--cache-dir", folder).code == 0
    assert sorted(folder.iterdir()) == kept


def test_files_stay_within_their_room(tmp_path: Path) -> None:
    shape = (10, 100)  # 4000 bytes
    for index in range(4):
        cache = Cache(10_000, tmp_path)
        tensor = cache.allocate(f"{index}", shape, torch.float32, CPU)
        assert tensor is not None
        tensor.fill_(index)
        cache.keep(f"{index}", {"mean": torch.tensor([float(index)])})
        os.utime(tmp_path / f"{index}.activations", (index, index))
    assert sorted(p.name for p in tmp_path.glob("*.activations")) == ["2.activations", "3.activations"]
    assert Cache(10_000, tmp_path).recall("0", shape, torch.float32) is None
    found = Cache(10_000, tmp_path).recall("3", shape, torch.float32)
    assert found is not None
    assert found[0].unique().tolist() == found[1]["mean"].tolist() == [3.0]


def test_what_was_not_completed_is_not_found(tmp_path: Path) -> None:
    cache = Cache(10_000, tmp_path)
    assert cache.allocate("k", (2, 2), torch.float32, CPU) is not None
    assert Cache(10_000, tmp_path).recall("k", (2, 2), torch.float32) is None


def test_a_full_disk_is_told_before_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="cannot take 0 MB of activations"):
        Cache(10_000, tmp_path / "kept").allocate("k", (2, 2), torch.float32, CPU)
    assert not list((tmp_path / "kept").iterdir())


def test_what_another_process_made_room_of_is_neither_completed_nor_found(tmp_path: Path) -> None:
    cache, shape = Cache(10_000, tmp_path), (10, 100)
    assert cache.allocate("k", shape, torch.float32, CPU) is not None
    (tmp_path / "k.activations").unlink()
    cache.keep("k", {})
    assert not (tmp_path / "k.safetensors").exists()
    assert cache.allocate("k", shape, torch.float32, CPU) is not None
    cache.keep("k", {})
    (tmp_path / "k.activations").unlink()
    assert Cache(10_000, tmp_path).recall("k", shape, torch.float32) is None


def test_room_is_made_of_what_was_not_recalled(tmp_path: Path) -> None:
    shape = (10, 100)  # 4000 bytes
    for index in range(2):
        cache = Cache(10_000, tmp_path)
        assert cache.allocate(f"{index}", shape, torch.float32, CPU) is not None
        cache.keep(f"{index}", {})
        os.utime(tmp_path / f"{index}.activations", (index, index))
    assert Cache(10_000, tmp_path).recall("0", shape, torch.float32) is not None
    assert Cache(10_000, tmp_path).allocate("2", shape, torch.float32, CPU) is not None
    assert sorted(p.stem for p in tmp_path.glob("*.activations")) == ["0", "2"]


def test_the_same_network_fed_otherwise_finds_nothing(fresh: Path, digits: Path, tmp_path: Path, invoke) -> None:
    folder = tmp_path / "cache"
    assert invoke(fresh, *FORGET, "--cache-dir", folder).code == 0
    kept = len(list(folder.iterdir()))
    from kswapctl.demo.digits import CHECKPOINT

    fed = ("--mean", "0.1,0.1,0.1")
    assert invoke(fresh, "add", "brighter", CHECKPOINT, "--data", digits, *fed).code == 0
    line = ["brighter" if word == "digits" else word for word in FORGET]
    assert invoke(fresh, *line, "--cache-dir", folder).code == 0
    assert len(list(folder.iterdir())) == 2 * kept


def test_a_method_s_penalty_is_a_part_of_its_loss(fresh: Path, invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "penalty", lambda *_: {"penalty": torch.tensor(float("nan"), requires_grad=True)})
    assert invoke(fresh, *FORGET).code == 17


def test_memory_ends(tmp_path: Path) -> None:
    cache = Cache(100)
    assert cache.allocate("a", (20,), torch.float32, CPU) is not None
    assert cache.allocate("b", (20,), torch.float32, CPU) is None


def test_a_key_depends_on_every_part() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert key_of("a", one) == key_of("a", one.clone())
    assert len({key_of("a", one), key_of("a", two), key_of("b", one), key_of("ab", one)}) == 4


def test_the_shortest_run_of_last_blocks_that_holds_a_quarter() -> None:
    assert shortest({"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0}) == 2
    assert shortest({"a": 0.0, "b": 0.0}) == 2
    assert shortest({"a": 9.0, "b": 0.0}) == 2


def test_the_choice_of_blocks_is_recorded(run_fresh) -> None:
    assert run_fresh(*FORGET[:-2], "--blocks", "auto").code == 0
    record = run_fresh("show", "digits@1", "--json").json["state"]["record"]
    chosen = int(record["blocks"].removeprefix("last:").partition(":")[0])
    assert chosen >= 1
    assert len(record["changed blocks"]) <= chosen


def test_a_heavy_penalty_empties_blocks_and_drops_them(run_fresh) -> None:
    quick = (
        "--preset",
        "few",
        "--set",
        "sparsity=0.4",
        "--set",
        "steps=24",
        "--set",
        "check_every=6",
        "--blocks",
        "all",
    )
    ran = run_fresh("forget", "digits", "--classes", "two", *quick, "--json")
    assert ran.code == 0, ran.err
    changed = run_fresh("show", "digits@1", "--json").json["state"]["record"]["changed blocks"]
    blocks = run_fresh("show", "digits", "--json").json["spec"]["blocks"]
    assert 0 < len(changed) < len(blocks)


def test_what_watches_blocks_keeps_them_though_the_penalty_empties_them(run_fresh) -> None:
    values = ("sparsity=0.9", "steps=24", "cycles=1", "check_every=6", "retain_views=1", "change_views=1")
    settings = [part for value in values for part in ("--set", value)]
    ran = run_fresh("forget", "digits", "--classes", "two", "--method", "erase", *settings)
    assert ran.code == 0, ran.err


def test_shares_of_a_batch_are_consecutive_and_leave_nothing_out() -> None:
    for count in (2, 7, 64):
        parts = [Team(rank, 3).share(count) for rank in range(3)]
        assert parts[0].start == 0
        assert parts[-1].stop == count
        assert all(a.stop == b.start for a, b in pairwise(parts))


def member(invoke: Run, rank: int, port: int, line: tuple[object, ...], home: Path, *, dies: bool) -> None:
    """One of two processes, as torchrun would start it."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if dies and rank:
        loop.validate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    os._exit(invoke(home, *line).code)


def together(invoke: Run, home: Path, *line: object, dies: bool = False) -> list[int | None]:
    """Exit codes of two processes that do one operation."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    members = [
        fork.Process(target=member, args=(invoke, rank, port, line, home), kwargs={"dies": dies}) for rank in (0, 1)
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(60)
        process.kill()
    return [process.exitcode for process in members]


@pytest.mark.parametrize(("kind", "blocks"), [("learn", "last:2"), ("forget", "last:2"), ("forget", "auto")])
def test_two_processes_give_the_adapter_of_one(
    fresh: Path, tmp_path: Path, digits: Path, invoke, monkeypatch, kind: str, blocks: str
) -> None:
    def noted(norms: dict[str, float]) -> int:
        (tmp_path / f"{os.getpid()}.norms").write_text(json.dumps(norms))
        return shortest(norms)

    monkeypatch.setattr("kswapctl.operations.surgery.shortest", noted)
    one, two = copies(fresh, tmp_path, "one", "two")
    line = (kind, "digits", "--data", digits, "--classes", "nine" if kind == "learn" else "two", *FORGET[4:-1], blocks)
    assert invoke(one, *line).code == 0
    assert together(invoke, two, *line) == [0, 0]
    outputs = []
    for home in (one, two):
        with Registry.open(home, read_only=True) as registry:
            network = load_version(registry, registry.resolve("digits")).network()
            assert len(registry.versions("digits")) == 2
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            outputs.append(network(torch.randn(64, *_input(network), generator=generator)))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=0)
    norms = [json.loads(file.read_text()) for file in tmp_path.glob("*.norms")]
    assert len(norms) == (3 if blocks == "auto" else 0)
    assert all(seen == pytest.approx(norms[0], rel=1e-3) for seen in norms)


def _input(network: nn.Module) -> tuple[int, int, int]:
    size = network.patch_embed.img_size
    return (network.patch_embed.proj.in_channels, *size)


def test_two_processes_do_a_plan_once(fresh: Path, tmp_path: Path, digits: Path, invoke) -> None:
    values = "{steps: 2, cycles: 1, retain_views: 1, change_views: 1}"
    operations = "[{op: learn, classes: [nine]}, {op: forget, classes: [two]}]"
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"version: 1\nmodel: digits\ndefaults: {{data: {digits}, set: {values}}}\noperations: {operations}\n"
    )
    assert together(invoke, fresh, "apply", plan, "--quiet") == [0, 0]
    with Registry.open(fresh, read_only=True) as registry:
        assert [v.ref for v in registry.versions("digits")] == ["digits@base", "digits@1", "digits@2"]


def test_one_of_two_processes_dies_and_nothing_is_registered(fresh: Path, invoke, state) -> None:
    before = state(fresh)
    first, second = together(invoke, fresh, *FORGET, dies=True)
    assert second == -signal.SIGKILL
    assert first == 18
    assert state(fresh) == before


def test_torchrun_can_start_the_command_line() -> None:
    ran = subprocess.run([sys.executable, "-m", "kswapctl", "--version"], capture_output=True, text=True, check=True)
    assert "kswapctl" in ran.stdout


def test_shares_of_what_is_right_are_exact() -> None:
    outputs, targets = torch.tensor([[1.0, 0.0]]).repeat(20, 1), torch.tensor([[0] * 19 + [1]])
    context = SimpleNamespace(task=TASKS["classification"], rows=torch.tensor([0, 1]))
    assert loop._right(context, outputs[None], targets, "learn") == 19 / 20


@pytest.mark.parametrize(("before", "after"), [(97, 96), (54, 53), (29, 28), (100, 99)])
def test_a_target_that_is_reached_exactly_is_met(before: int, after: int) -> None:
    """Shares of 100 items, one of which is lost where one may be; and 19 of 20 learned."""
    figures = {"retain before": before / 100, "retain": after / 100, "learn": 19 / 20, "forget": 1 / 20}
    targets = Targets(learn=0.95, forget=0.05, retain_drop=0.01)
    assert loop.meets(figures, targets, "learn")
    assert loop.meets(figures, targets, "forget")
    assert not loop.meets(figures | {"retain": (after - 1) / 100}, targets, "learn")


@pytest.mark.parametrize(
    ("shape", "count"),
    [((3, 64, 64), 256), ((3, 256, 256), 16), ((197, 768), 20), ((65, 192), 84), ((3, 4096, 4096), 1)],
)
def test_images_and_activations_go_through_in_chunks_of_a_like_size(shape, count):
    """Of a ViT-B 197 tokens stand for an image of 224 x 224 pixels, whatever their width."""
    assert chunk_of(torch.zeros(1, *shape)) == count
