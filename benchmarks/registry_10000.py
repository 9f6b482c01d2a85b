"""Ten thousand versions: what the commands of every day cost, against what merely starting the program costs.

    python benchmarks/registry_10000.py --versions 10000 --json registry_10000.json

Commands run as a user runs them, a process each, in turn. Figures are the least of several runs, as whatever else the
machine does only adds to them; a version's cost is processor time, the median of a tenth of all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kswap_registry import Registry

RUNS = 9
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
    "architecture": "tiny", "arguments": {}, "classifier": "head", "blocks": [], "parameters": 0, "data": "",
    "preprocessing": {"input_size": [3, 8, 8]},
}  # fmt: skip
CHANGE = {"kind": "learn", "classes": ["ann"], "preset": "default", "source": "faces", "seed": 0}
STATE = {
    "classes": ["ann", "bob"], "learned": {"ann": 1}, "forgotten": {}, "sources": ["faces"],
    "record": {"steps": 1, "met": True, "changed blocks": [], "data": {}},
}  # fmt: skip


def grow(registry: Registry, files: Path, count: int) -> list[float]:
    """Commit ``count`` versions, each with an adapter of its own; returns the seconds of each."""
    seconds = []
    for number in range(count):
        started = time.process_time()
        with registry.operation("faces", kind="learn", method="gs-lora", spec=CHANGE, command="benchmark") as operation:
            adapter = operation.folder / "adapter_model.safetensors"
            adapter.write_text(f"adapter {number}")
            operation.commit(
                {adapter.name: adapter}, state=STATE, adapter=f"{number:064}", weights="w", metrics={"retain": 1.0}
            )
        seconds.append(time.process_time() - started)
    return seconds


def measure(home: Path) -> dict[str, float]:
    """Least seconds of each command."""
    least = dict.fromkeys(COMMANDS, float("inf"))
    for name, arguments in list(COMMANDS.items()) * RUNS:
        started = time.perf_counter()
        command = [sys.executable, "-c", "from kswapctl.cli import main; main()", *arguments]
        subprocess.run(command, env=os.environ | {"KSWAP_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
        least[name] = min(least[name], time.perf_counter() - started)
    return least


def run(versions: int) -> dict[str, object]:
    """Grow a registry and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "registry"
        base = Path(folder) / "model.safetensors"
        base.write_text("weights of the base")
        with Registry.create(home) as registry:
            registry.add_model(
                "faces",
                task="classification",
                source="benchmark",
                spec=SPEC,
                classes=["ann", "bob"],
                fingerprint="f" * 64,
                files={"model.safetensors": base},
            )
            seconds = grow(registry, Path(folder), versions)
        tenth = max(1, versions // 10)
        commands = measure(home)
    return {
        "versions": versions,
        "python": platform.python_version(),
        "seconds": commands,
        "above --version": {name: value - commands["--version"] for name, value in commands.items()},
        "seconds per version": {
            "first tenth": statistics.median(seconds[:tenth]),
            "last tenth": statistics.median(seconds[-tenth:]),
        },
    }


def main() -> None:
    """Print a table, and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options.versions)
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    print(f"{options.versions} versions")
    for name, value in seconds.items():
        print(f"{name:14} {value:7.3f} s  {value - seconds['--version']:+7.3f} s")
    for part, value in result["seconds per version"].items():  # type: ignore[attr-defined]
        print(f"a version, {part}: {1e3 * value:.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
