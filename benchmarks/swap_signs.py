"""Learn five unseen traffic signs, forget five known ones: what is retained, learned and forgotten, over seeds.

The base knows 38 of 43 signs (see ``docs/data.md``). Each figure is measured by ``evaluate_version`` on the
test part, which training never saw; what share it had in choices is said in ``docs/results.md``. Run, with the data
unpacked::

    python benchmarks/swap_signs.py --base signs38.safetensors --data signs43 -o swap-signs.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from kswap_registry import Registry
from peft import PeftModel

from kswapctl.evaluation.predict import predict
from kswapctl.evaluation.scores import Evaluation, evaluate
from kswapctl.export.onnx import run_onnx
from kswapctl.models.checkpoint import Description
from kswapctl.operations.change import apply
from kswapctl.operations.look import evaluate_version, test_images
from kswapctl.operations.models import add_model
from kswapctl.operations.ship import Export, export, merge, unpack
from kswapctl.operations.versions import Composed, load_base, load_version
from kswapctl.progress import Silent
from kswapctl.spec import Change
from kswapctl.tasks import TASKS

LEARN = ("20_kmh", "einmalige_vorfahrt", "s_kurve_links", "scharfe_kurve_rechts", "verbot_der_einfahrt")
FORGET = (
    "30_kmh",
    "gefahrenstelle",
    "vorbeifahren_rechts",
    "vorfahrsstrasse",
    "vorgeschrieben_geradeaus_rechts",
)
COLUMNS = ("learned", "forgotten", "retained", "drop", "seconds")


def main() -> None:
    """Run every seed, print a table of means and spreads, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learn", default=",".join(LEARN))
    parser.add_argument("--forget", default=",".join(FORGET))
    parser.add_argument("--forget-method", default="gs-lora")
    parser.add_argument("--set", action="append", default=[], metavar="KIND.NAME=VALUE")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    settings = settings_by_kind(options.set)
    classes = {"learn": tuple(options.learn.split(",")), "forget": tuple(options.forget.split(","))}
    changes = {
        "learn": Change("learn", classes["learn"], options.data, settings=settings["learn"]),
        "forget": Change(
            "forget", classes["forget"], options.data, settings=settings["forget"], method=options.forget_method
        ),
    }
    runs = [run(options.base, options.data, seed, changes) for seed in options.seeds]
    print(table(runs))
    for stage in ("L->F as ONNX", "L->F in other forms"):
        for name in (n for n in runs[0][stage] if "logit" in n or "top-1" in n):
            print(f"{stage}, {name}: {', '.join(f'{r[stage][name]:.3g}' for r in runs)}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": runs}, indent=2) + "\n")


def settings_by_kind(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Hyper-parameters of learning and of forgetting, each text as KIND.NAME=VALUE."""
    settings: dict[str, dict[str, str]] = {"learn": {}, "forget": {}}
    for text in texts:
        kind, _, rest = text.partition(".")
        name, _, value = rest.partition("=")
        settings[kind][name] = value
    return settings


Figures = dict[str, float]


def run(base: str, data: str, seed: int, changes: dict[str, Change]) -> dict[str, Figures]:
    """Figures of one seed: after learning, after learning then forgetting (also as ONNX), after forgetting."""
    learn, forget = (replace(changes[kind], seed=seed) for kind in ("learn", "forget"))
    with tempfile.TemporaryDirectory() as folder, Registry.create(Path(folder) / "registry") as registry:
        add_model(registry, "signs", base, Description(), data)
        stages = {"L": measure(registry, learn)}
        stages["L->F"] = measure(registry, forget)
        stages["L->F as ONNX"] = measure_onnx(registry, Path(folder) / "signs.onnx")
        stages["L->F in other forms"] = measure_forms(registry, Path(folder))
        registry.move_head("signs", 0)
        stages["F"] = measure(registry, forget)
    print(json.dumps({"seed": seed} | stages), flush=True)
    return stages


def measure(registry: Registry, change: Change) -> dict[str, float]:
    """Do ``change`` on the head, and evaluate."""
    start = time.monotonic()
    result = apply(registry, "signs", change, "benchmark", Silent())
    seconds = time.monotonic() - start
    return figures(evaluate_version(registry, result.version, [], False, "cpu", Silent())) | {"seconds": seconds}


def measure_onnx(registry: Registry, file: Path) -> dict[str, float]:
    """Export the head and evaluate what onnxruntime computes."""
    version = registry.resolve("signs")
    parity = export(registry, version, Export(file, every=True), "benchmark", Silent())
    composed, base = load_version(registry, version), load_version(registry, registry.resolve("signs@base"))
    images = test_images(composed, [], False, Silent())
    knowledge, task = composed.knowledge, TASKS[composed.spec.task]
    outputs = run_onnx(file, images.pixels, composed.spec).argmax(1)
    before = predict(base.network(), images.pixels, base.spec.preprocessing).argmax(1)
    scores = evaluate(task, outputs, before, images.targets(knowledge.classes), knowledge)
    return figures(scores) | {"logit difference": parity.largest, "same top-1": 100 * parity.agreement}


def measure_forms(registry: Registry, folder: Path) -> Figures:
    """The head as plain PEFT adapters stacked on the base, and merged and loaded by timm, against what is composed."""
    composed = load_version(registry, registry.resolve("signs"))
    images = test_images(composed, [], False, Silent())
    expected = predict(composed.network(), images.pixels, composed.spec.preprocessing)
    merge(registry, composed.version, folder / "merged.safetensors", False, "benchmark")
    merged = timm.create_model(
        composed.spec.architecture,
        checkpoint_path=str(folder / "merged.safetensors"),
        num_classes=len(composed.knowledge.classes),
        **composed.spec.arguments,
    ).eval()
    found: Figures = {}
    for name, network in (("merged", merged), ("stacked", stacked(registry, composed, folder))):
        outputs = predict(network, images.pixels, composed.spec.preprocessing)
        found[f"{name}: logit difference"] = (outputs - expected).abs().max().item()
        found[f"{name}: same top-1"] = 100 * (outputs.argmax(1) == expected.argmax(1)).float().mean().item()
    return found


def stacked(registry: Registry, composed: Composed, folder: Path) -> torch.nn.Module:
    """The base with every adapter of the stack active side by side, by PEFT alone."""
    weights = load_base(registry, registry.model("signs"))
    rows = len(composed.knowledge.classes)
    network = timm.create_model(composed.spec.architecture, num_classes=rows, **composed.spec.arguments)
    head = {k for k in weights if k.startswith("head.")}
    network.load_state_dict({k: v for k, v in weights.items() if k not in head}, strict=False)
    model = None
    for version in registry.stack(composed.version):
        name = f"ks_{version.number:04}"
        place = str(unpack(registry, version, folder / name, False))
        if model is None:
            model = PeftModel.from_pretrained(network, place, adapter_name=name)
        else:
            model.load_adapter(place, name)
    model.base_model.set_adapter([f"ks_{v.number:04}" for v in registry.stack(composed.version)])
    return model.eval()


def figures(scores: Evaluation) -> dict[str, float]:
    """Accuracies in percent, and the loss of retained accuracy in points."""
    found = {s.name: 100 * s.accuracy for s in scores.sets if s.name in {"learned", "forgotten"}}
    retain = scores.set("retain")
    return found | {"retained": 100 * retain.accuracy, "drop": 100 * (retain.base - retain.accuracy)}


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """Mean over seeds, with the lowest and highest, as Markdown."""
    lines = ["| stage | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for stage in (name for name, found in runs[0].items() if "retained" in found):
        cells = []
        for column in COLUMNS:
            values = [r[stage][column] for r in runs if column in r[stage]]
            spread = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-"
            cells.append(spread)
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
