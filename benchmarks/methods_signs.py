"""Run every method through the command line on traffic signs: what is left of what goes, stays and comes.

Each method starts from the base: it forgets five of the 38 signs that the base knows, or learns five that it has never
seen. Hyper-parameters are compared on a folder that ``validation_split.py`` wrote, never on the test part. Run::

    python benchmarks/methods_signs.py --base signs38.safetensors --data validation
    python benchmarks/methods_signs.py --base signs38.safetensors --data validation --only ssd.forget \
        --set ssd.forget.alpha=3 --set ssd.forget.strength=0.3
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from kswap_registry import Registry
from swap_signs import FORGET, LEARN
from typer.testing import CliRunner

from kswapctl.cli import app
from kswapctl.methods import METHODS
from kswapctl.operations.studies.gauge import Gauge

CLASSES = {"learn": LEARN, "forget": FORGET}
HEADS = ("method", "kind", "Acc_f or Acc_l", "Acc_r", "drop", "blocks", "met", "seconds")


def main() -> None:
    """Print a row for each method and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD[.KIND]")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KIND.NAME=VALUE")
    options = parser.parse_args()
    settings: dict[str, list[str]] = defaultdict(list)
    for text in options.set:
        method, kind, rest = text.split(".", 2)
        settings[f"{method}.{kind}"] += ["--set", rest]
    print("| " + " | ".join(HEADS) + " |")
    print("|---|---|" + "---:|" * (len(HEADS) - 2))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "registry"
        call(home, "init")
        call(home, "add", "signs", options.base, "--data", options.data)
        registry = stack.enter_context(Registry.open(home, read_only=True))
        gauge = Gauge(registry, "signs")
        for name, kinds in METHODS.items():
            for kind in (method.kind for method in kinds):
                chosen = f"{name}.{kind}"
                if not options.only or {name, chosen} & set(options.only):
                    common = ["--method", name, "--seed", str(options.seed), "--cache-dir", f"{folder}/cache"]
                    row = measure(home, kind, [*common, *settings[chosen], "--data", options.data], gauge)
                    print("| " + " | ".join([name, kind, *row]) + " |", flush=True)


def measure(home: Path, kind: str, arguments: list[str], gauge: Gauge) -> list[str]:
    """One operation on the base, in percent and seconds."""
    start = time.monotonic()
    text = call(
        home, kind, "signs", "--classes", ",".join(CLASSES[kind]), *arguments, "--device", "cpu", "--json", "-q"
    )
    seconds = time.monotonic() - start
    if not text:
        return ["diverged", *["-"] * (len(HEADS) - 4), f"{seconds:.0f}"]
    done = json.loads(text)[0]
    version = gauge.registry.resolve("signs")
    scores = {s.name: s for s in gauge.scores(version, [gauge.registry.model("signs").spec["data"]]).sets}
    call(home, "rollback", "signs", "--to", "base")
    changed, retain = scores[{"learn": "learned", "forget": "forgotten"}[kind]], scores["retain"]
    return [
        f"{100 * changed.accuracy:.1f}",
        f"{100 * retain.accuracy:.1f}",
        f"{100 * (retain.base - retain.accuracy):.1f}",
        str(len(done["changed_blocks"])),
        "yes" if done["met"] else "no",
        f"{seconds:.0f}",
    ]


def call(home: Path, *arguments: str) -> str:
    """Stdout of a command; nothing where training diverged (exit code 17)."""
    result = CliRunner(env={"KSWAP_HOME": str(home)}).invoke(app, list(arguments))
    if result.exit_code not in (0, 17):
        raise SystemExit(f"kswapctl {' '.join(arguments)} ended with {result.exit_code}: {result.stderr}")
    return result.stdout if result.exit_code == 0 else ""


if __name__ == "__main__":
    main()
