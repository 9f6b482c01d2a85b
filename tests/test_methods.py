"""Every method, by being listed; and what adding one takes."""

import dataclasses
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from kswap_registry import Registry
from torch import Tensor

from kswapctl.errors import UsageError
from kswapctl.methods import METHODS, Context, Method, Seen, find_method
from kswapctl.methods.describe import describe
from kswapctl.models.lora import compose
from kswapctl.models.weights import fingerprint, read
from kswapctl.operations.material import choose
from kswapctl.operations.surgery import operate
from kswapctl.operations.versions import load_version
from kswapctl.progress import Silent
from kswapctl.runtime import threads
from kswapctl.spec import Change, Rehearsal, Role

EVERY = [(name, method) for name, kinds in METHODS.items() for method in kinds]
EACH = pytest.mark.parametrize(("name", "method"), EVERY, ids=[f"{n}-{m.kind}" for n, m in EVERY])
QUICK = ("--set", "steps=6", "--set", "cycles=1", "--set", "retain_views=2", "--set", "change_views=2")
CLASSES = {"learn": "nine", "forget": "two"}


@dataclass(frozen=True)
class Push(Method):
    """Negated cross-entropy on what is forgotten: all that a new method has to say."""

    kind = "forget"
    source = "this test"
    presets: ClassVar = {"default": {}}

    strength: float = 0.1
    """Weight of the push."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """One term a role."""
        kept, gone = (context.task.losses(s.outputs, s.targets).mean() for s in (seen["retain"], seen["forget"]))
        return {"retain": kept, "push": -self.strength * gone}


def test_a_method_is_its_own_file_and_one_line(run, home, monkeypatch):
    monkeypatch.setitem(METHODS, "push", (Push,))
    ran = run("forget", "digits", "--classes", "two", "--method", "push", *QUICK, "--set", "strength=0.2", "--json")
    assert ran.code == 0, ran.err
    made = run("show", ran.json[0]["version"], "--json").json
    assert made["method"] == "push"
    assert "Weight of the push." in run("methods", "push").out
    assert run("rollback", "digits").code == 0


@pytest.fixture(scope="module")
def few_digits(digits, tmp_path_factory):
    """A manifest of eight images of each digit."""
    root = tmp_path_factory.mktemp("few")
    lines = ["path,label,split"]
    for folder in sorted((digits / "train").iterdir()):
        (root / folder.name).mkdir()
        for file in sorted(folder.iterdir())[:8]:
            copied = Path(shutil.copy(file, root / folder.name / file.name))
            lines.append(f"{copied.relative_to(root)},{folder.name},train")
    manifest = root / "few.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return str(manifest)


@pytest.fixture(scope="module")
def composed(base_home):
    with Registry.open(base_home, read_only=True) as registry:
        return load_version(registry, registry.resolve("digits@base"))


def few_steps(name, method, data):
    """An operation that any method ends soon."""
    rehearsal = Rehearsal(share=0.3, validation=0.2)
    classes = (CLASSES[method.kind],)
    return Change(method.kind, classes, data, method=name, settings=quick(method), rehearsal=rehearsal)


@EACH
def test_a_method_changes_something_finite_and_the_same_each_time(composed, few_digits, name, method):
    change = few_steps(name, method, few_digits)
    outcomes = [operate(composed, choose(composed.knowledge, change, "labels"), Silent())[0] for _ in range(2)]
    first, second = (outcome.adapter for outcome in outcomes)
    assert first.fingerprint == second.fingerprint
    assert first.factors or name == "imprint-only"
    assert all(math.isfinite(value) for value in outcomes[0].validation.values())
    after = compose(composed.weights, [first])
    assert fingerprint(after) != fingerprint(composed.weights)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


@pytest.mark.slow
@EACH
def test_a_method_runs_on_two_threads(composed, few_digits, name, method):
    change = few_steps(name, method, few_digits)
    with threads(2):
        outcome, _ = operate(composed, choose(composed.knowledge, change, "labels"), Silent())
    assert all(torch.isfinite(tensor).all() for tensor in compose(composed.weights, [outcome.adapter]).values())


@pytest.mark.slow
@EACH
def test_a_method_runs_merges_and_is_taken_back_from_the_command_line(run_fresh, fresh, tmp_path, name, method):
    settings = [t for n, v in quick(method).items() for t in ("--set", f"{n}={v}")]
    ran = run_fresh(
        method.kind, "digits", "--classes", CLASSES[method.kind], *data(run_fresh, method), "--method", name, *settings
    )
    assert ran.code == 0, ran.err
    with Registry.open(fresh, read_only=True) as registry:
        composed = load_version(registry, registry.resolve("digits@1"))
    assert run_fresh("merge", "digits@1", "-o", tmp_path / "merged.safetensors").code == 0
    merged, _ = read(tmp_path / "merged.safetensors")
    assert fingerprint(merged) == fingerprint(composed.weights)
    assert run_fresh("rollback", "digits", "--to", "base").code == 0


def quick(method):
    """As few steps as show what is to be shown, of a method that takes any."""
    names = {f.name for f in dataclasses.fields(method)}
    few = {"steps": 4, "cycles": 1, "retain_views": 2, "change_views": 2}
    few |= {n: v for n, v in {"autoencoder_steps": 4, "importance_images": 4, "alpha": 1.0}.items() if n in names}
    default = method()
    return {n: str(v) for n, v in few.items() if getattr(default, n) > v}


def data(run, method):
    """Learning wants its data named; forgetting takes what the model was added with."""
    source = run("show", "digits", "--json").json["spec"]["data"]
    return ("--data", source) if method.kind == "learn" else ()


@EACH
def test_a_method_cites_its_source_and_explains_every_value(name, method):
    described = next(d for d in describe(name) if d["kind"] == method.kind)
    assert described["source"]
    assert described["summary"].endswith(".")
    assert all(p["help"] and p["help"].isprintable() for p in described["parameters"])
    assert {p["type"] for p in described["parameters"]} <= {"int", "float", "str", "bool"}


@EACH
def test_every_preset_can_be_built(name, method):
    assert all(method.configure(preset, {}) for preset in method.presets)


@EACH
def test_no_steps_at_all_is_refused(name, method):
    with pytest.raises(UsageError, match="steps must be at least 1"):
        method.configure("default", {"steps": "0"})


def test_a_method_that_only_forgets_does_not_learn():
    with pytest.raises(UsageError, match="cannot learn"):
        find_method("erase", "learn")


def test_whole_weights_are_stored_as_the_nearest_adapter(run_fresh, fresh):
    ran = run_fresh("forget", "digits", "--classes", "two", *QUICK, "--set", "form=whole", "--set", "rank=2", "--json")
    assert ran.code == 0, ran.err
    assert "of the change's norm was left out" in ran.err
    assert 0 < run_fresh("show", "digits@1", "--json").json["state"]["record"]["lost"] < 1
    assert "% of its norm" in run_fresh("show", "digits@1").out


def test_blocks_that_the_penalty_leaves_at_zero_are_not_stored_and_are_counted(run_fresh):
    settings = ("--set", "sparsity=0.4", "--blocks", "all")
    ran = run_fresh("forget", "digits", "--classes", "two", *QUICK, *settings, "--json")
    assert ran.code == 0, ran.err
    changed = ran.json[0]["changed_blocks"]
    assert 1 <= len(changed) < 6
    shown = run_fresh("show", "digits@1").out
    assert re.search(rf"blocks changed +{len(changed)} of 6", shown)
    ratio = float(re.search(r"tunable ratio +([\d.]+) %", shown)[1])
    assert 0 < ratio < 30
    diff = run_fresh("diff", "digits@base", "digits", "--json").json["blocks"]
    assert {b["name"] for b in diff if b["change"]} == set(changed)


def test_noise_changes_the_way_but_not_what_is_stored_of_it(run_fresh):
    ran = run_fresh("forget", "digits", "--classes", "two", *QUICK, "--set", "noise=0.01", "--json")
    assert ran.code == 0, ran.err
