"""Hold the audit against models whose truth is known: does every measure rank them rightly, and what is the verdict?

Models without the same classes, over seeds: the original, one whose head was masked, what our methods leave, and one
retrained without the classes. Each is held against a retrained network of another seed (R1) and against the classes
that no model ever saw (R3), where there are such. Run, with the data unpacked::

    python benchmarks/audit_calibration.py --base signs38.safetensors --data signs43 \\
        --retrained retrained0.safetensors retrained1.safetensors --tier deep -o audit-calibration.json
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kswap_registry import Registry, Version
from swap_signs import FORGET

from kswapctl.audit.cases import Case
from kswapctl.audit.protocol import Extra, Models, Plan, conduct
from kswapctl.audit.relearn import Curve
from kswapctl.audit.verdict import AUDIT_V1, Measure, judge
from kswapctl.data.sources import open_source
from kswapctl.data.splits import take, training_part
from kswapctl.models.checkpoint import Description, load
from kswapctl.operations.audit import build_models, case_of, look
from kswapctl.operations.audit_material import Known, Request, Subject, choose_images, choose_subject
from kswapctl.operations.audit_networks import ByPart, Pupil, teach
from kswapctl.operations.change import apply
from kswapctl.operations.models import add_model
from kswapctl.operations.studies.subsets import folder_name
from kswapctl.progress import Silent
from kswapctl.spec import Change


def main() -> None:
    """Audit the models with every seed, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--forget", default=",".join(FORGET))
    parser.add_argument("--methods", nargs="+", default=["erase"], help="NAME or NAME:PRESET")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--retrained", type=Path, nargs="*", default=[], help="one file or more, each of its own seed")
    parser.add_argument("--control", default="")
    parser.add_argument("--few", type=int, default=0, help="images of each forgotten class that forgetting sees")
    parser.add_argument("--learn", nargs=2, metavar=("DATA", "CLASSES"), help="learn these first: to forget on a stack")
    parser.add_argument("--tier", choices=("quick", "standard", "deep"), default="standard")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        start = time.monotonic()
        runs.append(calibrate(options, seed))
        print(f"seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(runs, indent=2) + "\n")
    for kind in runs[0]:
        print(table(runs, kind))


Found = dict[str, dict[str, dict[str, Any]]]
"""Kind of reference to model to its verdict and its measures."""


@dataclass(frozen=True)
class Bench:
    """What all audits of one seed share."""

    options: argparse.Namespace
    seed: int
    subject: Subject
    images: ByPart
    plan: Plan

    def meet(self, known: Known) -> Case:
        """A network as a case."""
        return case_of(known, look(known, self.images, "cpu", Silent()), self.subject)

    def teach(self, known: Known, case: Case, role: str = "forget") -> Curve | None:
        """How fresh adapters learn again, in the deep tier."""
        if self.options.tier != "deep":
            return None
        blocks = self.subject.blocks
        pupil = Pupil(known, case, role)
        return self.plan.once("M6b", case, lambda: teach(pupil, blocks, self.images, self.seed, Silent()))


def calibrate(options: argparse.Namespace, seed: int) -> Found:
    """Audit every model with one seed, against each reference."""
    request = Request(options.tier, control=options.control, seed=seed)
    with tempfile.TemporaryDirectory() as folder, Registry.create(Path(folder) / "registry") as registry:
        add_model(registry, "model", options.base, Description(), options.data)
        if options.learn:
            learn(registry, *options.learn, seed)
        seen = few_images(options, Path(folder), seed) if options.few else options.data
        versions = {name: forget(registry, options, name, seed, seen) for name in options.methods}
        subjects = {name: choose_subject(registry, version, request) for name, version in versions.items()}
    first = dataclasses.replace(next(iter(subjects.values())), seen=())  # attackers have all images of the data
    sources = [options.data, *(options.learn or [])[:1]]
    images = choose_images(first, sources, request, Silent())
    bench = Bench(options, seed, first, images, Plan(options.tier, seed))
    models = build_models(first, images, "cpu", Silent())
    audited = {"original": (first.original, models.original), "head-masked": (first.original, models.masked)}
    for name, subject in subjects.items():
        audited[name] = (
            subject.audited,
            models.audited if first.audited is subject.audited else bench.meet(subject.audited),
        )
    files = [from_file(path) for path in options.retrained]
    met = [(known, bench.meet(known)) for known in files]
    if met:
        audited["retrained"] = met[seed % len(met)]
    found: Found = {}
    if models.reference is not None:
        found["R3"] = against(bench, models, audited, (first.original, models.reference, "control"))
    if met:
        known, case = met[(seed + 1) % len(met)]
        paired = dataclasses.replace(models, reference=case, kind="R1")
        others = {k: v for k, v in audited.items() if v[1] is not case}
        found["R1"] = against(bench, paired, others, (known, case, "forget"))
    return found


def few_images(options: argparse.Namespace, folder: Path, seed: int) -> str:
    """A folder with only so many training images of each class to forget, chosen by ``seed``."""
    source = open_source(options.data)
    classes = options.forget.split(",")
    chosen = take(training_part(source, classes), dict.fromkeys(classes, options.few), f"few {seed}")
    for sample in chosen:
        file = folder / "few" / "train" / folder_name(sample.label) / Path(sample.key).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(sample))
    return str(folder / "few")


def learn(registry: Registry, data: str, classes: str, seed: int) -> None:
    """Learn the ``classes`` of ``data`` on the base, by the default method."""
    apply(registry, "model", Change("learn", tuple(classes.split(",")), data, seed=seed), "benchmark", Silent())


def forget(registry: Registry, options: argparse.Namespace, name: str, seed: int, seen: str) -> Version:
    """Forget on what was learned, if anything, by METHOD or METHOD:PRESET, with the images of ``seen``."""
    method, _, preset = name.partition(":")
    registry.move_head("model", 1 if options.learn else 0)
    classes = tuple(options.forget.split(","))
    settings = dict(text.split("=", 1) for text in options.set)
    change = Change(
        "forget", classes, seen, options.data, method, preset=preset or "default", settings=settings, seed=seed
    )
    return apply(registry, "model", change, "benchmark", Silent()).version


def from_file(path: Path) -> Known:
    """A retrained network."""
    checkpoint = load(str(path), Description())
    return Known(path.name, checkpoint.spec, checkpoint.spec.classes, checkpoint.weights)


Audited = dict[str, tuple[Known, Case]]


def against(
    bench: Bench, models: Models, audited: Audited, reference: tuple[Known, Case, str]
) -> dict[str, dict[str, Any]]:
    """The measures and the verdict of every model, against one reference."""
    names = (*bench.subject.retained, *bench.subject.targets)
    whole = bench.teach(*audited["original"])
    theirs = bench.teach(*reference)
    found = {}
    for name, (known, case) in audited.items():
        extra = Extra()
        if whole is not None and theirs is not None:
            mine = whole if name == "head-masked" else bench.teach(known, case) or whole
            curves = {"original": whole, "audited": mine, "head-masked": whole, "reference": theirs}
            extra = Extra(relearned=curves)
        one = Models(models.original, case, models.masked, models.reference, models.kind)
        measures, _ = conduct(one, names, bench.plan, extra)
        verdict = judge(measures, 10**9, AUDIT_V1)
        found[name] = {
            "verdict": verdict.answer,
            "reasons": list(verdict.reasons),
            "measures": {m.id: brief(m) for m in measures},
        }
        print(bench.seed, name, models.kind, verdict.answer, verdict.reasons, flush=True)
    return found


def brief(measure: Measure) -> dict[str, Any]:
    """What a table shows of a measure."""
    fields = ("value", "low", "high", "level", "votes", "note")
    told = {k: v for k, v in dataclasses.asdict(measure).items() if k in fields}
    told |= {k: v for k, v in measure.details.get("recovered", {}).items() if k in {"audited", "reference"}}
    return told | {"worst": measure.details.get("recovery", {}).get("worst")}


def table(runs: Sequence[Found], kind: str) -> str:
    """Mean over seeds of what each measure says of each model, as Markdown: what is recovered, %, and the index."""
    shown = list(runs[0][kind])
    heads = (*shown, f"reference {kind}", "original first", "retrained last", "votes")
    lines = [f"| measure | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    ours = next(m for m in shown if m not in {"original", "head-masked", "retrained"})
    for id_ in runs[0][kind][ours]["measures"]:
        each = {model: [run[kind][model]["measures"][id_] for run in runs] for model in shown}
        cells = [cell(each[model]) for model in shown]
        mine = each[ours]
        reference = spread([m.get("reference") for m in mine], 100, 1)
        votes = sum(bool(m["votes"]) for m in mine)
        ranked = [[plain(each[model][i]) for model in shown] for i in range(len(runs))]
        first, last = sum(most(r, 0) for r in ranked), sum(most([-v for v in r], -1) for r in ranked)
        told = [f"{count}/{len(runs)}" for count in (first, last, votes)]
        told[1] = told[1] if shown[-1] == "retrained" else "-"
        lines.append(f"| {id_} | {' | '.join([*cells, reference, *told])} |")
    verdicts = [", ".join(str(run[kind][model]["verdict"]) for run in runs) for model in shown]
    lines.append(f"| verdict | {' | '.join(verdicts)} | | | | |")
    return "\n".join(lines)


def plain(measure: dict[str, Any]) -> float:
    """What the model is ranked by: what an attack recovers, or the measure's own value."""
    return float(measure.get("audited", measure["value"]) or 0.0)


def most(values: Sequence[float], place: int) -> bool:
    """Whether the value at ``place`` is the highest, ties allowed up to a point of accuracy."""
    return values[place] >= max(values) - 0.01


def cell(found: Sequence[dict[str, Any]]) -> str:
    """Recovered share with the index over all classes and of the worst class, or the value itself; each with spread."""
    recovered = [m.get("audited") for m in found]
    if all(share is None for share in recovered):
        return spread([m["value"] for m in found], 1, 3)
    index, worst = spread([m["value"] for m in found], 1, 2), spread([m["worst"] for m in found], 1, 2)
    return f"{spread(recovered, 100, 1)} ({index}; worst {worst})"


def spread(values: Sequence[Any], factor: int, digits: int) -> str:
    """Mean, lowest and highest."""
    numbers = [factor * float(v) for v in values if v is not None]
    if not numbers:
        return "-"
    lowest, highest = (f"{extreme:.{digits}f}" for extreme in (min(numbers), max(numbers)))
    between = "" if lowest == highest else f" [{lowest}, {highest}]"
    return f"{statistics.mean(numbers):.{digits}f}{between}"


if __name__ == "__main__":
    main()
