"""Adapters as files and values: round trip, fingerprints, what is refused, and loading them with plain PEFT."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kswapctl.errors import DataError, UnsafeInputError, WrongBaseError
from kswapctl.models.lora import CONFIG_FILE, WEIGHTS_FILE, Adapter, compose, delta, fold, load, save

PREFIX = "base_model.model."


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    return Adapter(
        rank=2,
        scale=0.3,
        factors={
            "blocks.0.mlp.fc1": (torch.randn(2, 4), torch.randn(6, 2)),
            "stem.conv": (torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)),
        },
        head={"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)},
    )


@pytest.fixture
def base(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {
        "blocks.0.mlp.fc1.weight": torch.randn(6, 4),
        "stem.conv.weight": torch.randn(5, 3, 3, 3),
        "head.weight": adapter.head["head.weight"][:2].clone(),
        "head.bias": adapter.head["head.bias"][:2].clone(),
    }


def test_an_adapter_comes_back_from_its_folder_bit_for_bit(adapter: Adapter, tmp_path: Path) -> None:
    again = load(save(adapter, tmp_path, "base"))
    assert again.rank == adapter.rank
    assert again.fingerprint == adapter.fingerprint
    assert all(torch.equal(v, again.tensors()[k]) for k, v in adapter.tensors().items())


def test_saving_twice_writes_the_same_bytes(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = save(adapter, tmp_path / "a", "base"), save(adapter, tmp_path / "b", "base")
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE))


@pytest.mark.parametrize("change", [{"scale": 0.31}, {"head": {}}, {"factors": {}}])
def test_the_fingerprint_tells_every_change(adapter: Adapter, change: dict[str, object]) -> None:
    assert dataclasses.replace(adapter, **change).fingerprint != adapter.fingerprint


def test_the_fingerprint_tells_one_flipped_bit(adapter: Adapter) -> None:
    before = adapter.fingerprint
    a, _ = adapter.factors["blocks.0.mlp.fc1"]
    a.view(torch.int32)[0, 0] ^= 1
    assert adapter.fingerprint != before


def test_the_change_of_a_layer_is_scale_times_b_times_a() -> None:
    """B (2, 1) = (1, 2), A (1, 2) = (3, 4), scale 0.5: [[1.5, 2], [3, 4]]."""
    change = delta(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]]), 0.5)
    torch.testing.assert_close(change, torch.tensor([[1.5, 2.0], [3.0, 4.0]]))


def test_folding_leaves_the_weights_it_was_given(adapter: Adapter, base: dict[str, torch.Tensor]) -> None:
    before = {k: v.clone() for k, v in base.items()}
    folded = fold(base, adapter)
    assert all(torch.equal(base[k], before[k]) for k in base)
    assert not torch.equal(folded["stem.conv.weight"], base["stem.conv.weight"])
    assert len(folded["head.weight"]) == 3


def test_composing_no_adapters_is_the_base(base: dict[str, torch.Tensor]) -> None:
    composed = compose(base, [])
    assert all(torch.equal(composed[k], base[k]) for k in base)


def test_a_classifier_grown_from_another_one_is_refused(adapter: Adapter, base: dict[str, torch.Tensor]) -> None:
    base["head.weight"] = base["head.weight"] + 1e-3
    with pytest.raises(WrongBaseError, match=r"head\.weight was grown from another one"):
        fold(base, adapter)


def test_a_layer_of_another_shape_is_refused(adapter: Adapter, base: dict[str, torch.Tensor]) -> None:
    base["stem.conv.weight"] = torch.randn(5, 3, 1, 1)
    with pytest.raises(WrongBaseError, match=r"stem\.conv"):
        fold(base, adapter)


def _rewrite(files: dict[str, Path], change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(files[WEIGHTS_FILE]) | {k: v for k, v in change.items() if v is not None}
    kept = {k: v for k, v in tensors.items() if change.get(k, v) is not None}
    files[WEIGHTS_FILE].unlink()
    save_file(kept, files[WEIGHTS_FILE])


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "lora_A.weight", PREFIX + "blocks.0.mlp.fc1.lora_C.weight", PREFIX + "other.lora_B.weight"],
)
def test_a_tensor_that_no_adapter_has_is_refused(adapter: Adapter, tmp_path: Path, name: str) -> None:
    files = save(adapter, tmp_path, "base")
    _rewrite(files, {name: torch.zeros(1)})
    with pytest.raises(UnsafeInputError, match=r"no part of an adapter|may not be"):
        load(files)


def test_half_a_pair_of_factors_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    files = save(adapter, tmp_path, "base")
    _rewrite(files, {PREFIX + "stem.conv.lora_B.weight": None})
    with pytest.raises(UnsafeInputError, match=r"stem\.conv\.lora_A"):
        load(files)


def test_nan_in_an_adapter_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    files = save(adapter, tmp_path, "base")
    _rewrite(files, {PREFIX + "head.bias": torch.tensor([0.0, float("nan"), 0.0])})
    with pytest.raises(DataError, match=r"NaN or infinity in .*head\.bias"):
        load(files)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"r": "x", "lora_alpha": 1}', '{"r": 0, "lora_alpha": 1}', '{"r": 2}', "\xff"]
)
def test_a_configuration_that_is_none_is_refused(adapter: Adapter, tmp_path: Path, text: str) -> None:
    files = save(adapter, tmp_path, "base")
    files[CONFIG_FILE].write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="no LoRA configuration"):
        load(files)


def test_factors_of_another_rank_than_the_configuration_says_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    files = save(adapter, tmp_path, "base")
    files[CONFIG_FILE].write_text(files[CONFIG_FILE].read_text().replace('"r": 2', '"r": 4'))
    with pytest.raises(WrongBaseError, match="differ in the rank"):
        load(files)


def test_the_configuration_names_layers_classifier_and_base(adapter: Adapter, tmp_path: Path) -> None:
    config = json.loads(save(adapter, tmp_path, "faces")[CONFIG_FILE].read_text())
    assert config["target_modules"] == ["blocks.0.mlp.fc1", "stem.conv"]
    assert config["modules_to_save"] == ["head"]
    assert config["base_model_name_or_path"] == "faces"
    assert config["lora_alpha"] / config["r"] == pytest.approx(0.3)
