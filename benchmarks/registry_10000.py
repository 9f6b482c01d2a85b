"""Ten thousand versions: what the commands of every day cost, against what merely starting the program costs.

    python benchmarks/registry_10000.py --versions 10000 --json registry_10000.json

Commands run as a user runs them, a process each, in turn, so that whatever else the machine does falls on all alike. A
figure is the median of several runs, and its difference the median of those to the ``--version`` of the same round. A
version's cost is processor time: a small registry and the large one get 200 versions each, by turns. The registry grows
in memory, where syncing costs nothing, and the commands run on a copy on disk. Ends with code 1 where a promise does
not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kswap_registry import Registry

RUNS = 15
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the registry grows."""
ABOVE = {"list": 0.1, "log": 0.1, "show": 0.1, "rollback": 0.1}
"""Promised: at most this many seconds above ``--version``."""
DOCTOR = 10.0
"""Promised: at most this many seconds."""
GROWTH = 1.2
"""Promised: the last versions cost at most this many times what the first ones do."""
COMMANDS = {
    "--version": ["--version"],
    "list": ["list", "faces"],
    "log": ["log", "faces"],
    "show": ["show", "faces@head"],
    "rollback": ["rollback", "faces"],
    "log --verify": ["log", "--verify"],
    "doctor": ["doctor"],
}
SPEC = {
    "architecture": "tiny", "arguments": {}, "classifier": "head", "blocks": [], "parameters": 9, "data": "",
    "preprocessing": {"input_size": [3, 8, 8]},
}  # fmt: skip
CHANGE = {"kind": "learn", "classes": ["ann"], "preset": "default", "source": "faces", "seed": 0}
STATE = {
    "classes": ["ann", "bob"], "learned": {"ann": 1}, "forgotten": {}, "sources": ["faces"],
    "record": {"steps": 1, "met": True, "changed blocks": [], "data": {}},
}  # fmt: skip


def start(folder: Path) -> Registry:
    """A registry with one model at its base."""
    folder.mkdir()
    (folder / "model").write_text("weights of the base")
    registry = Registry.create(folder / "registry")
    files = {"model.safetensors": folder / "model"}
    registry.add_model(
        "faces",
        task="classification",
        source="benchmark",
        spec=SPEC,
        classes=["ann", "bob"],
        fingerprint="f" * 64,
        files=files,
    )
    return registry


def add(registry: Registry, number: int) -> float:
    """Commit a version with an adapter of its own; returns its processor seconds."""
    started = time.process_time()
    with registry.operation("faces", kind="learn", method="gs-lora", spec=CHANGE, command="benchmark") as operation:
        adapter = operation.folder / "adapter_model.safetensors"
        adapter.write_text(f"adapter {number}")
        operation.commit(
            {adapter.name: adapter}, state=STATE, adapter=f"{number:064}", weights="w", metrics={"retain": 1.0}
        )
    return time.process_time() - started


def compare(small: Registry, large: Registry, count: int) -> dict[str, float]:
    """Median processor seconds of a version in each, by turns; both grow by ``count``."""
    seconds: dict[str, list[float]] = {"the first 200": [], "after all": []}
    for number in range(count):
        for name, registry in zip(seconds, (small, large), strict=True):
            seconds[name].append(add(registry, 10**9 + number))
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(home: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds on the clock and of the processor, by round; the first round only warms the disk's cache."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for name, arguments in list(COMMANDS.items()) * (1 + RUNS):
        clock, processor = time.perf_counter(), _processor()
        command = [sys.executable, "-c", "from kswapctl.cli import main; main()", *arguments]
        subprocess.run(command, env=os.environ | {"KSWAP_HOME": str(home)}, check=True, capture_output=True)
        seconds[name].append((time.perf_counter() - clock, _processor() - processor))
    return {name: values[1:] for name, values in seconds.items()}


def _processor() -> float:
    """Processor seconds of all children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def above(seconds: list[float], reference: list[float]) -> float:
    """Median of the differences, round by round."""
    return statistics.median(one - other for one, other in zip(seconds, reference, strict=True))


def broken(result: dict[str, Any]) -> list[str]:
    """The promises that do not hold."""
    found = [
        f"{name}: more than {most} s above" for name, most in ABOVE.items() if result["above --version"][name] > most
    ]
    if result["seconds"]["doctor"] > DOCTOR:
        found.append(f"doctor: more than {DOCTOR} s")
    first, last = result["seconds per version"].values()
    return [*found, "a version costs more and more"] if last > GROWTH * first else found


def run(versions: int) -> dict[str, Any]:
    """Grow a registry and measure it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, tempfile.TemporaryDirectory() as disk:
        with start(Path(folder) / "small") as small, start(Path(folder) / "large") as large:
            for number in range(versions):
                add(large, number)
            cost = compare(small, large, 200)
        commands = measure(Path(shutil.copytree(Path(folder) / "large" / "registry", Path(disk) / "registry")))
    clock, processor = ({name: [pair[i] for pair in pairs] for name, pairs in commands.items()} for i in (0, 1))
    return {
        "versions": versions,
        "python": platform.python_version(),
        "load": os.getloadavg()[1],
        "seconds": {name: statistics.median(values) for name, values in clock.items()},
        "above --version": {name: above(values, clock["--version"]) for name, values in clock.items()},
        "processor above --version": {
            name: above(values, processor["--version"]) for name, values in processor.items()
        },
        "seconds per version": cost,
    }


def main() -> None:
    """Print a table, and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options.versions)
    print(f"{options.versions} versions, load {result['load']:.1f} on {os.cpu_count()} cores")
    print("command           clock      above   of it processor")
    for name, value in result["seconds"].items():
        more, busy = result["above --version"][name], result["processor above --version"][name]
        print(f"{name:14} {value:7.3f} s  {more:+7.3f} s  {busy:+7.3f} s")
    for part, value in result["seconds per version"].items():
        print(f"a version, {part}: {1e3 * value:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = broken(result)
    print("\n".join(missed) or "all that is promised holds")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
