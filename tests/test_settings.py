"""Hyper-parameters as text: each can be set, and what cannot be is told."""

import dataclasses

import pytest

from kswapctl.errors import UsageError
from kswapctl.methods import METHODS, Method

EVERY = [pytest.param(m, id=f"{n} {m.kind}") for n, kinds in METHODS.items() for m in kinds]


@pytest.mark.parametrize("method", EVERY)
def test_every_hyper_parameter_can_be_set_as_text(method: type[Method]) -> None:
    default = method()
    values = {f.name: str(getattr(default, f.name)) for f in dataclasses.fields(method)}
    assert method.configure("default", values) == default


@pytest.mark.parametrize("method", EVERY)
def test_an_unknown_hyper_parameter_answers_with_the_nearest(method: type[Method]) -> None:
    with pytest.raises(UsageError, match="no hyper-parameter 'stepz'") as raised:
        method.configure("default", {"stepz": "3"})
    assert "'steps'" in raised.value.hint


@pytest.mark.parametrize(("name", "text"), [("rank", "many"), ("lr", "1,5"), ("proximal", "perhaps"), ("rank", "1.5")])
@pytest.mark.parametrize("method", EVERY)
def test_a_value_of_the_wrong_type_is_refused(method: type[Method], name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{name}={text}"):
        method.configure("default", {name: text})


@pytest.mark.parametrize("method", EVERY)
def test_a_preset_s_values_go_before_the_defaults_and_settings_before_both(method: type[Method]) -> None:
    for preset, values in method.presets.items():
        configured = method.configure(preset, {})
        assert all(getattr(configured, name) == value for name, value in values.items())
        assert method.configure(preset, {"check_every": "7"}).check_every == 7
