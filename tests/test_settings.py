"""Hyper-parameters as text: each can be set, and what cannot be is told."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kswapctl.errors import UsageError
from kswapctl.methods import METHODS, Method, find_method
from kswapctl.methods.describe import describe
from kswapctl.spec import Kind

EVERY = [pytest.param(m, id=f"{n} {m.kind}") for n, kinds in METHODS.items() for m in kinds]


@pytest.mark.parametrize("method", EVERY)
def test_every_hyper_parameter_can_be_set_as_text(method: type[Method]) -> None:
    default = method()
    values = {f.name: str(getattr(default, f.name)) for f in dataclasses.fields(method) if f.name not in method.idle()}
    assert method.configure("default", values) == default


@pytest.mark.parametrize(
    ("name", "kind", "setting", "why"),
    [
        ("gs-lora", "forget", "head_lr", "adds no row"),
        ("ssd", "forget", "lr", "takes no step"),
        ("imprint-only", "learn", "head_lr", "takes no step"),
    ],
)
def test_a_hyper_parameter_that_does_nothing_is_refused_and_not_listed(
    name: str, kind: Kind, setting: str, why: str
) -> None:
    with pytest.raises(UsageError, match=f"{setting} does nothing in this method") as raised:
        find_method(name, kind).configure("default", {setting: "0.1"})
    assert why in raised.value.hint
    (told,) = (m for m in describe(name) if m["kind"] == kind)
    assert setting not in {p["name"] for p in told["parameters"]}


@pytest.mark.parametrize("method", EVERY)
def test_an_unknown_hyper_parameter_answers_with_the_nearest(method: type[Method]) -> None:
    with pytest.raises(UsageError, match="no hyper-parameter 'stepz'") as raised:
        method.configure("default", {"stepz": "3"})
    assert "'steps'" in raised.value.hint


@pytest.mark.parametrize(("name", "text"), [("rank", "many"), ("lr", "1,5"), ("proximal", "perhaps"), ("rank", "1.5")])
@pytest.mark.parametrize("method", EVERY)
def test_a_value_of_the_wrong_type_is_refused(method: type[Method], name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{name}={text}|{name} does nothing"):
        method.configure("default", {name: text})


@pytest.mark.parametrize("name", ["retrain", "ssd", "salun"])
def test_a_method_that_edits_whole_weights_trains_no_adapter(name: str) -> None:
    """Its adapter would be trained beside other weights than those it is added to."""
    for method in METHODS[name]:
        with pytest.raises(UsageError, match="no form 'adapter'"):
            method.configure("default", {"form": "adapter"})


@pytest.mark.parametrize("share", ["0", "-0.1", "1.5"])
def test_some_weights_must_be_able_to_move(share: str) -> None:
    with pytest.raises(UsageError, match="salient must be above 0"):
        METHODS["salun"][0].configure("default", {"salient": share})


@pytest.mark.parametrize("method", EVERY)
def test_a_penalty_that_is_no_proximal_step_is_a_loss(method: type[Method]) -> None:
    """Factors (3, 4) of one block: 0.5 times their norm 5; of whole weights there is no adapter to shorten."""
    context = SimpleNamespace(groups={"block": [nn.Parameter(torch.tensor([3.0, 4.0]))]})
    configured = dataclasses.replace(method(), proximal=False, sparsity=0.5)
    values = [term.item() for term in configured.penalty(context).values()]
    assert values == ([] if configured.form == "whole" else [2.5])


@pytest.mark.parametrize("method", EVERY)
def test_a_preset_s_values_go_before_the_defaults_and_settings_before_both(method: type[Method]) -> None:
    for preset, values in method.presets.items():
        configured = method.configure(preset, {})
        assert all(getattr(configured, name) == value for name, value in values.items())
        assert method.configure(preset, {"rank": "7"}).rank == 7
