"""Learn and forget against the papers' loop, on the same split: whole operations, and the accuracies each ends with.

Ours is timed whole: reading, choosing blocks, caching, training, registering. Theirs is run once whole; it is a sum
of equal steps and equal evaluations, which are also timed in turn with ours, so that a median stands behind its total.
Run::

    python benchmarks/speed_papers.py --base signs38.safetensors --data signs43 -o speed-papers.json
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from kswap_registry import Registry
from papers_loop import EPOCHS, EVERY, PapersLoop
from swap_signs import FORGET, LEARN, figures
from timing import interleave, keep, median, ratio

from kswapctl.models.checkpoint import Description
from kswapctl.operations.change import apply
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.models import add_model
from kswapctl.progress import Silent
from kswapctl.spec import Change

STEPS = 4
"""Steps of theirs that are timed in one go."""


def main() -> None:
    """Print a line for each phase, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--kinds", nargs="+", default=["learn", "forget"])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    theirs = PapersLoop(options.base, options.data, LEARN, FORGET, options.seed)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, Registry.create(Path(folder) / "registry") as registry:
        add_model(registry, "signs", options.base, Description(), options.data)
        for kind in options.kinds:
            classes = LEARN if kind == "learn" else FORGET
            change = Change(kind, classes, options.data, seed=options.seed, preset=options.preset)
            found[kind] = phase(registry, theirs, change, options.rounds)
            print(found[kind], flush=True)
    keep(found, options.output)


def phase(registry: Registry, theirs: PapersLoop, change: Change, rounds: int) -> dict[str, object]:
    """Time one phase of both, and evaluate both on the test part; ours stays at the head."""
    before = registry.resolve("signs")

    def ours() -> None:
        registry.move_head("signs", before.number)
        apply(registry, "signs", change, "benchmark", Silent())

    quality = theirs.learn() if change.kind == "learn" else theirs.forget()
    timed = interleave(
        {"ours": ours, "steps": lambda: theirs.some(change.kind, STEPS), "look": theirs.evaluate}, rounds
    )
    step = [seconds / STEPS for seconds in timed["steps"]]
    steps = theirs.steps[change.kind]
    published = [steps * s + -(-steps // EVERY) * e for s, e in zip(step, timed["look"], strict=True)]
    epochs = [steps * s + EPOCHS * e for s, e in zip(step, timed["look"], strict=True)]
    version = registry.resolve("signs")
    return {
        "ours": median(timed["ours"]),
        "theirs, whole, once": f"{theirs.seconds[change.kind]:.0f} s",
        "theirs, from steps and looks": median(published),
        "times faster than as published": round(ratio(published, timed["ours"]), 1),
        "times faster than with a look once an epoch": round(ratio(epochs, timed["ours"]), 1),
        "theirs: steps": steps,
        "theirs: a step": median(step),
        "theirs: a look": median(timed["look"]),
        "accuracies, ours": figures(evaluate_version(registry, version, [], False, "cpu", Silent())),
        "accuracies, theirs": quality,
        "seconds, ours": timed["ours"],
        "share of looks in theirs": round(1 - steps * statistics.median(step) / statistics.median(published), 2),
    }


if __name__ == "__main__":
    main()
