"""Hold the audit against models whose truth is known: does every measure rank them rightly, and what is the verdict?

Four models without the same classes, over seeds: the original, one whose head was masked, ours, and one retrained
without the classes. The reference is a retrained model of another seed where two or more are given, else the classes
that no model ever saw. Run, with the data unpacked::

    python benchmarks/audit_calibration.py --base signs38.safetensors --data signs43 \\
        --retrained retrained.safetensors -o audit-calibration.json
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kswap_registry import Registry
from swap_signs import FORGET

from kswapctl.audit.protocol import Extra, Models, Plan, conduct
from kswapctl.audit.verdict import AUDIT_V1, Measure, judge
from kswapctl.models.checkpoint import Description, load
from kswapctl.operations.audit import build_models, case_of, look
from kswapctl.operations.audit_material import Known, Request, choose_images, choose_subject
from kswapctl.operations.change import apply
from kswapctl.operations.models import add_model
from kswapctl.progress import Silent
from kswapctl.spec import Change

MODELS = ("original", "head-masked", "ours", "retrained")


def main() -> None:
    """Audit the four models with every seed, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--forget", default=",".join(FORGET))
    parser.add_argument("--method", default="gs-lora")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--retrained", type=Path, nargs="*", default=[], help="one file or one a seed")
    parser.add_argument("--control", default="")
    parser.add_argument("--tier", choices=("quick", "standard"), default="standard")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    runs = [calibrate(options, seed) for seed in options.seeds]
    print(table(runs))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(runs, indent=2) + "\n")


Found = dict[str, dict[str, object]]
"""Model to its verdict and its measures."""


def calibrate(options: argparse.Namespace, seed: int) -> Found:
    """Audit the four models with one seed."""
    files = options.retrained
    truth = files[seed % len(files)] if files else None
    reference = files[(seed + 1) % len(files)] if len(files) > 1 else None
    settings = dict(text.split("=", 1) for text in options.set)
    forget = Change(
        "forget", tuple(options.forget.split(",")), options.data, method=options.method, settings=settings, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder, Registry.create(Path(folder) / "registry") as registry:
        add_model(registry, "model", options.base, Description(), options.data)
        version = apply(registry, "model", forget, "benchmark", Silent()).version
        request = Request(options.tier, reference=reference, control=options.control, seed=seed)
        start = time.monotonic()
        subject = choose_subject(registry, version, request)
        images = choose_images(subject, [options.data], request, Silent())
        models = build_models(subject, images, "cpu", Silent())
    audited = {"original": models.original, "head-masked": models.masked, "ours": models.audited}
    if truth:
        checkpoint = load(str(truth), Description())
        known = Known(truth.name, checkpoint.spec, checkpoint.spec.classes, checkpoint.weights)
        audited["retrained"] = case_of(known, look(known, images, "cpu", Silent()), subject)
    names = (*subject.retained, *subject.targets)
    found: Found = {}
    for name, case in audited.items():
        one = Models(models.original, case, models.masked, models.reference, models.kind)
        measures, _ = conduct(one, names, Plan(options.tier, seed), Extra())
        verdict = judge(measures, 10**9, AUDIT_V1)
        found[name] = {
            "reference": models.kind,
            "verdict": verdict.answer,
            "reasons": list(verdict.reasons),
            "measures": {m.id: brief(m) for m in measures},
        }
        print(seed, name, models.kind, verdict.answer, verdict.reasons, flush=True)
    print(f"seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    return found


def brief(measure: Measure) -> dict[str, object]:
    """What a table shows of a measure."""
    fields = ("value", "low", "high", "level", "votes", "note")
    told = {k: v for k, v in dataclasses.asdict(measure).items() if k in fields}
    recovered = measure.details.get("recovered", {})
    return told | {k: v for k, v in recovered.items() if k in {"audited", "reference"}}


def table(runs: Sequence[Found]) -> str:
    """Mean over seeds of what each measure says of each model, as Markdown: what is recovered, %, and the index."""
    shown = [m for m in MODELS if m in runs[0]]
    lines = [f"| measure | {' | '.join(shown)} | reference | order | votes |", "|---|" + "---|" * (len(shown) + 3)]
    for id_ in runs[0]["ours"]["measures"]:
        each = {model: [run[model]["measures"][id_] for run in runs] for model in shown}
        cells = [cell(each[model]) for model in shown]
        mine = each["ours"]
        reference = mean([m.get("reference") for m in mine])
        votes = sum(bool(m["votes"]) for m in mine)
        right = sum(in_order([plain(each[m][i]) for m in shown]) for i in range(len(runs)))
        shown_reference = "-" if reference is None else f"{100 * reference:.1f}"
        lines.append(f"| {id_} | {' | '.join(cells)} | {shown_reference} | {right}/{len(runs)} | {votes}/{len(runs)} |")
    verdicts = [", ".join(str(run[model]["verdict"]) for run in runs) for model in shown]
    lines.append(f"| verdict | {' | '.join(verdicts)} | {runs[0]['ours']['reference']} | | |")
    return "\n".join(lines)


def plain(measure: dict[str, object]) -> float:
    """What the model is ranked by: what an attack recovers, or the measure's own value."""
    return float(measure.get("audited", measure["value"]) or 0.0)


def in_order(values: Sequence[float]) -> bool:
    """Whether they fall from the original to the retrained, ties allowed up to a point of accuracy."""
    return all(a >= b - 0.01 for a, b in itertools.pairwise(values))


def cell(found: Sequence[dict[str, object]]) -> str:
    """Recovered share with the index, or the value itself."""
    index = mean([m["value"] for m in found])
    recovered = mean([m.get("audited") for m in found])
    if recovered is None:
        return "-" if index is None else f"{index:.3f}"
    return f"{100 * recovered:.1f} (RI {'-' if index is None else format(index, '.2f')})"


def mean(values: Sequence[object]) -> float | None:
    """Of the numbers among them."""
    numbers = [float(v) for v in values if v is not None]
    return statistics.mean(numbers) if numbers else None


if __name__ == "__main__":
    main()
