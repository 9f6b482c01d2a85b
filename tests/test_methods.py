"""Every method, by being listed; and what adding one takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from kswapctl.errors import UsageError
from kswapctl.methods import METHODS, Context, Method, Seen, find_method
from kswapctl.methods.describe import describe
from kswapctl.spec import Role

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


@EACH
def test_a_method_changes_something_and_is_taken_back(run, home, name, method):
    run("rollback", "digits", "--to", "base")
    ran = run(
        method.kind, "digits", "--classes", CLASSES[method.kind], *data(run, method), "--method", name, *QUICK, "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json[0]["changed_blocks"]
    assert run("rollback", "digits", "--to", "base").code == 0


def data(run, method):
    """Learning wants its data named; forgetting takes what the model was added with."""
    source = run("show", "digits", "--json").json["spec"]["data"]
    return ("--data", source) if method.kind == "learn" else ()


@EACH
def test_a_method_cites_its_source_and_explains_every_value(name, method):
    described = next(d for d in describe(name) if d["kind"] == method.kind)
    assert described["source"]
    assert described["summary"].endswith(".")
    assert all(p["help"] for p in described["parameters"])


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


def test_noise_changes_the_way_but_not_what_is_stored_of_it(run_fresh):
    ran = run_fresh("forget", "digits", "--classes", "two", *QUICK, "--set", "noise=0.01", "--json")
    assert ran.code == 0, ran.err
