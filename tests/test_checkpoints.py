"""Checkpoints in all their forms: what is read from them, and what does not fit or is unsafe."""

import json
import pickle
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import kswapctl
from kswapctl.errors import DataError, NotFoundError, UnsafeInputError, UsageError, WrongBaseError
from kswapctl.models.building import build, create
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.weights import fingerprint, read, write
from kswapctl.spec import ModelSpec, Preprocessing

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 1}
NAMES = ("ant", "bee", "cat")
SPEC = ModelSpec(ARCHITECTURE, ARGUMENTS, NAMES, Preprocessing((3, 32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
TOLD = Description(architecture=ARCHITECTURE, arguments=ARGUMENTS, classes=NAMES)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return dict(create(ARCHITECTURE, ARGUMENTS, 3).state_dict())


@pytest.fixture
def plain(weights: Weights, tmp_path: Path) -> Path:
    """A file that says nothing of itself."""
    save_file(weights, tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def test_a_timm_name_gives_random_weights_and_numbered_classes() -> None:
    loaded = load("test_vit", Description(arguments={"num_classes": 4}, pretrained=False))
    assert loaded.spec.architecture == "test_vit"
    assert loaded.spec.classes == ("class_0", "class_1", "class_2", "class_3")


@pytest.mark.parametrize(
    ("arguments", "pretrained", "error", "said"),
    [
        ({"num_classes": 4}, True, UsageError, "keeps its rows"),
        ({"checkpoint_path": "/tmp/x"}, False, UnsafeInputError, "checkpoint_path"),
    ],
)
def test_what_timm_must_not_be_told_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, arguments, pretrained: bool, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(error, match=said):
        load("test_vit", Description(arguments=arguments, pretrained=pretrained))


def test_a_timm_name_takes_the_class_names_it_is_told() -> None:
    loaded = load("test_vit", Description(classes=NAMES, pretrained=False))
    assert loaded.spec.classes == NAMES
    assert len(loaded.weights["head.weight"]) == 3


def test_an_imagenet_classifier_has_imagenet_s_class_names() -> None:
    loaded = load("test_vit", Description(pretrained=False))
    assert len(set(loaded.spec.classes)) == 1000
    assert "goldfish" in loaded.spec.classes[1].lower() or loaded.spec.classes[1] == "n01443537"


def test_an_image_size_changes_the_preprocessing() -> None:
    loaded = load(ARCHITECTURE, Description(arguments=ARGUMENTS, classes=NAMES, pretrained=False))
    assert loaded.spec.preprocessing.input_size == (3, 32, 32)
    assert loaded.spec.preprocessing.crop_pct == 1.0


def test_a_file_that_says_all_of_itself_needs_no_flags(weights: Weights, tmp_path: Path) -> None:
    write(weights, tmp_path / "full.safetensors", SPEC.to_json())
    loaded = load(str(tmp_path / "full.safetensors"), Description())
    assert loaded.spec == SPEC
    assert fingerprint(loaded.weights) == fingerprint(weights)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_brought_to_full(weights: Weights, tmp_path: Path, kind: torch.dtype) -> None:
    """Adapters are added to it one by one: half as many bits would round each of them away."""
    write({k: v.to(kind) for k, v in weights.items()}, tmp_path / "half.safetensors", SPEC.to_json())
    loaded = load(str(tmp_path / "half.safetensors"), Description()).weights
    assert {v.dtype for v in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[k], v.to(kind).float()) for k, v in weights.items())


def test_flags_say_what_a_file_does_not(plain: Path, weights: Weights) -> None:
    loaded = load(str(plain), Description(ARCHITECTURE, ARGUMENTS, NAMES, {"mean": [0.1, 0.2, 0.3]}))
    assert loaded.spec.classes == NAMES
    assert loaded.spec.preprocessing.mean == (0.1, 0.2, 0.3)
    assert fingerprint(loaded.weights) == fingerprint(weights)


def test_flags_go_before_what_a_file_says(weights: Weights, tmp_path: Path) -> None:
    write(weights, tmp_path / "full.safetensors", SPEC.to_json())
    told = Description(classes=("x", "y", "z"), preprocessing={"std": [1.0, 1.0, 1.0]})
    loaded = load(str(tmp_path / "full.safetensors"), told)
    assert loaded.spec.classes == ("x", "y", "z")
    assert loaded.spec.preprocessing.std == (1.0, 1.0, 1.0)


def test_a_network_is_built_again_from_its_specification(weights: Weights) -> None:
    model = build(SPEC, weights)
    assert not model.training
    assert fingerprint(model.state_dict()) == fingerprint(weights)


def test_a_network_takes_as_many_rows_as_the_weights_have(weights: Weights) -> None:
    grown = weights | {"head.weight": torch.randn(5, 16), "head.bias": torch.randn(5)}
    assert build(SPEC, grown)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight is left over"),
        ({"norm.weight": torch.zeros(7)}, r"norm.weight is \(7,\), not \(16,\)"),
        ({"head.weight": None}, "head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(plain: Path, weights: Weights, change: Weights, said: str) -> None:
    changed = {k: v for k, v in (weights | change).items() if v is not None}
    plain.unlink()
    save_file(changed, plain)
    with pytest.raises(WrongBaseError, match=said):
        load(str(plain), TOLD)


def test_another_architecture_is_refused(plain: Path) -> None:
    with pytest.raises(WrongBaseError, match="do not fit vit_tiny"):
        load(str(plain), Description(ARCHITECTURE, ARGUMENTS | {"depth": 2}, NAMES))


def test_another_number_of_classes_is_refused_with_both_numbers(plain: Path) -> None:
    with pytest.raises(WrongBaseError, match="has 3 classes, but 2 class names"):
        load(str(plain), Description(ARCHITECTURE, ARGUMENTS, ("ant", "bee")))


def test_blanks_around_a_class_name_are_cut_off(plain: Path) -> None:
    assert load(str(plain), Description(ARCHITECTURE, ARGUMENTS, ("ant", "bed ", "c, d"))).spec.classes[1:] == (
        "bed",
        "c, d",
    )
    with pytest.raises(DataError, match="a class is called ''"):
        load(str(plain), Description(ARCHITECTURE, ARGUMENTS, ("ant", " ", "cat")))


def test_rows_that_a_file_calls_the_same_get_their_number(plain: Path) -> None:
    tensors, _ = read(plain)
    write(tensors, plain, {"architecture": ARCHITECTURE, "arguments": ARGUMENTS, "classes": ["N/A", "ant", "N/A"]})
    assert load(str(plain), Description()).spec.classes == ("N/A 0", "ant", "N/A 2")


def test_classes_of_one_name_are_refused(plain: Path) -> None:
    with pytest.raises(DataError, match="two classes are called 'ant'"):
        load(str(plain), Description(ARCHITECTURE, ARGUMENTS, ("ant", "ant", "cat")))


@pytest.mark.parametrize(
    ("told", "hint"), [(Description(), "--architecture"), (Description(ARCHITECTURE, ARGUMENTS), "--classes")]
)
def test_a_file_that_says_too_little_asks_for_the_flag(plain: Path, told: Description, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(str(plain), told)
    assert hint in raised.value.hint


@pytest.mark.parametrize("source", ["vit_tinny_patch16_224", "nothing-like-it", "missing.onnx"])
def test_an_unknown_name_answers_with_the_nearest_ones(source: str) -> None:
    with pytest.raises(NotFoundError, match=source) as raised:
        load(source, Description())
    assert ("vit_tiny_patch16_224" in raised.value.hint) == source.startswith("vit")


def test_an_unknown_architecture_answers_with_the_nearest_ones(plain: Path) -> None:
    with pytest.raises(NotFoundError, match="vit_tinny") as raised:
        load(str(plain), Description("vit_tinny_patch16_224", {}, NAMES))
    assert "vit_tiny_patch16_224" in raised.value.hint


def test_arguments_that_timm_does_not_take_are_refused() -> None:
    with pytest.raises(UsageError, match="nonsense"):
        load(ARCHITECTURE, Description(arguments={"nonsense": 1}, pretrained=False))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    for place in (tmp_path / f"gone{suffix}", Path("models") / f"gone{suffix}"):  # the latter is no ORG/NAME
        with pytest.raises(NotFoundError, match="no such file"):
            load(str(place), Description(ARCHITECTURE, allow_pickle=True))


def test_the_hub_without_a_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFoundError, match="hf-hub:timm/nothing cannot be fetched") as raised:
        load("hf-hub:timm/nothing", Description())
    assert "\n" not in raised.value.message


def say(monkeypatch: pytest.MonkeyPatch, stated: dict[str, object], arguments: dict[str, object]) -> None:
    """What any repository of the Hub says of its network."""
    import timm.models
    import timm.models._factory as factory
    import timm.models._hub as hub

    said = {"num_classes": 3, "label_names": list(NAMES), "mean": (0.1, 0.2, 0.3), "classifier": "head"}
    said |= {"input_size": (3, 160, 160), "crop_pct": 0.9} | stated
    for module in (timm.models, factory, hub):
        monkeypatch.setattr(module, "load_model_config_from_hf", lambda *_, **__: (said, "test_vit", arguments))


def test_a_hub_model_brings_the_arguments_it_is_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, {}, {"act_layer": "relu", "img_size": 64})
    loaded = load("hf-hub:someone/something", Description(pretrained=False))
    assert loaded.spec.arguments == {"act_layer": "relu", "img_size": 64}
    assert loaded.spec.preprocessing.input_size == (3, 64, 64)
    assert any(isinstance(module, torch.nn.ReLU) for module in build(loaded.spec, loaded.weights).modules())


def test_a_hub_model_of_another_input_size_is_built_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, {"input_size": (3, 192, 192), "fixed_input_size": True}, {})
    loaded = load("hf-hub:someone/something", Description(pretrained=False))
    assert loaded.spec.arguments == {"img_size": [192, 192]}
    assert (loaded.spec.preprocessing.input_size, loaded.spec.preprocessing.crop_pct) == ((3, 192, 192), 0.9)


def test_a_hub_model_that_would_be_built_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kswapctl.models import checkpoint

    say(monkeypatch, {}, {"act_layer": "relu"})
    monkeypatch.setattr(checkpoint, "_stated_arguments", lambda _: {})
    with pytest.raises(WrongBaseError, match="is not the network that was loaded"):
        load("hf-hub:someone/something", Description(pretrained=False))


def test_a_network_of_grey_images_is_fed_with_them() -> None:
    made = load("test_vit", Description(arguments={"in_chans": 1}, classes=NAMES, pretrained=False))
    assert made.spec.preprocessing.input_size[0] == len(made.spec.preprocessing.mean) == 1
    build(made.spec, made.weights)(torch.zeros(2, *made.spec.preprocessing.input_size))
    with pytest.raises(DataError, match="4 channels"):
        load("test_vit", Description(arguments={"in_chans": 4}, classes=NAMES, pretrained=False))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"classes": [0, 1, 2]}, "names a class 0"),
        ({"classes": [["a"], ["b"], ["c"]]}, "names a class"),
        ({"preprocessing": {"input_size": 160}}, "input_size 160"),
        ({"preprocessing": {"interpolation": "area"}}, "interpolation 'area'"),
        ({"preprocessing": {"crop_pct": 0}}, "crop_pct 0"),
        ({"preprocessing": {"input_size": [3, 99, 99]}}, r"takes no images of the stated input_size \[3, 99, 99\]"),
    ],
)
def test_what_a_file_states_in_another_form_is_told(plain: Path, tmp_path: Path, said, told: str) -> None:
    weights, _ = read(plain)
    card = {"architecture": ARCHITECTURE, "arguments": ARGUMENTS, "classes": list(NAMES)} | said
    write(weights, tmp_path / "m.safetensors", card)
    with pytest.raises(DataError, match=told):
        load(str(tmp_path / "m.safetensors"), Description())


def test_a_hub_model_brings_its_architecture_classes_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, {}, {})
    loaded = load("hf-hub:someone/something", Description(pretrained=False, else_classes=("x", "y", "z")))
    assert loaded.spec.architecture == "test_vit"
    assert loaded.spec.classes == NAMES
    assert loaded.spec.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.fixture
def _weights_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models come as they are built, without a download."""
    import timm.models._builder as builder

    monkeypatch.setattr(builder, "load_pretrained", lambda *_, **__: None)


@pytest.mark.usefixtures("_weights_at_hand")
def test_the_names_of_data_do_not_replace_those_of_a_pretrained_classifier() -> None:
    loaded = load("test_vit", Description(else_classes=NAMES))
    assert len(loaded.spec.classes) == 1000
    assert "ant" not in loaded.spec.classes


@pytest.mark.usefixtures("_weights_at_hand")
def test_another_number_of_classes_than_a_pretrained_classifier_has_is_refused() -> None:
    with pytest.raises(WrongBaseError, match="test_vit has 1000 classes, but 3 names"):
        load("test_vit", Description(classes=NAMES))


def test_data_names_the_classes_of_a_file_that_does_not(plain: Path, weights: Weights) -> None:
    loaded = load(str(plain), Description(ARCHITECTURE, ARGUMENTS, else_classes=NAMES))
    assert loaded.spec.classes == NAMES
    write(weights, plain, SPEC.to_json())
    assert load(str(plain), Description(else_classes=("x", "y", "z"))).spec.classes == NAMES


def test_a_pickle_is_refused_without_the_opt_in(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(UnsafeInputError, match=r"model\.pth is a pickle") as raised:
        load(str(tmp_path / "model.pth"), TOLD)
    assert "--allow-pickle" in raised.value.hint


OPTED = Description(ARCHITECTURE, ARGUMENTS, NAMES, allow_pickle=True)


@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_ema"])
def test_a_pickled_state_dict_is_read_with_the_opt_in(weights: Weights, tmp_path: Path, key: str) -> None:
    torch.save({key: weights, "epoch": 3} if key else weights, tmp_path / "model.pth")
    assert fingerprint(load(str(tmp_path / "model.pth"), OPTED).weights) == fingerprint(weights)


def test_the_prefix_of_parallel_training_is_dropped(weights: Weights, tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in weights.items()}, tmp_path / "model.pth")
    assert fingerprint(load(str(tmp_path / "model.pth"), OPTED).weights) == fingerprint(weights)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {"a": "text"}])
def test_a_pickle_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(DataError, match="holds no state dict"):
        load(str(tmp_path / "model.pth"), OPTED)


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["m.pth", "m.bin", "m.pt", "m.PTH", "m.ckpt", "m.safetensors", "m.SAFETENSORS"])
def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path, name: str, how: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / name
    if how == "torch":
        torch.save({"weight": Payload(canary)}, file)
    else:
        file.write_bytes(pickle.dumps({"weight": Payload(canary)}))
    with pytest.raises(UnsafeInputError):
        load(str(file), OPTED)
    assert not canary.exists()


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_safetensors_are_read_under_capital_letters(plain: Path) -> None:
    capital = plain.with_name("PLAIN.SAFETENSORS")
    shutil.copy(plain, capital)
    assert load(str(capital), TOLD).spec.classes == NAMES


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(DataError, match=r"model\.h5"):
        load(str(tmp_path / "model.h5"), TOLD)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_nan_in_a_checkpoint_is_refused_by_name(weights: Weights, tmp_path: Path, value: float, suffix: str) -> None:
    bad = weights | {"norm.bias": torch.full((16,), value)}
    file = tmp_path / f"model{suffix}"
    save_file(bad, file) if suffix == ".safetensors" else torch.save(bad, file)
    with pytest.raises(DataError, match=r"NaN or infinity in norm\.bias"):
        load(str(file), OPTED)


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(plain: Path, size: int) -> None:
    plain.write_bytes(plain.read_bytes()[:size])
    with pytest.raises(UnsafeInputError, match="not a sound safetensors file"):
        load(str(plain), TOLD)


@pytest.mark.parametrize("header", [2**63, 2**40, 100_000_001])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, header: int) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(header.to_bytes(8, "little") + b"{}")
    with pytest.raises(UnsafeInputError):
        read(file)


@pytest.mark.parametrize("metadata", ["not json", "[1]", '"text"', "3"])
def test_metadata_that_is_no_object_is_refused(weights: Weights, tmp_path: Path, metadata: str) -> None:
    save_file(weights, tmp_path / "m.safetensors", metadata={"kswapctl": metadata})
    with pytest.raises((UnsafeInputError, DataError)):
        load(str(tmp_path / "m.safetensors"), TOLD)


@pytest.mark.parametrize(
    "change", [{"classes": 3}, {"arguments": [1]}, {"preprocessing": {"mean": "x"}}, {"architecture": 7}]
)
def test_metadata_of_the_wrong_form_is_one_clear_line(
    weights: Weights, tmp_path: Path, change: dict[str, object]
) -> None:
    write(weights, tmp_path / "m.safetensors", SPEC.to_json() | change)
    with pytest.raises((DataError, UsageError, NotFoundError, WrongBaseError)):
        load(str(tmp_path / "m.safetensors"), Description())


def test_writing_twice_gives_the_same_bytes(weights: Weights, tmp_path: Path) -> None:
    write(weights, tmp_path / "a", SPEC.to_json())
    write(weights, tmp_path / "b", json.loads(json.dumps(SPEC.to_json())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "value"])
def test_the_fingerprint_of_weights_tells_every_change(change: str) -> None:
    tensor = torch.ones(4, dtype=torch.float32)
    other = {
        "name": {"b": tensor},
        "dtype": {"a": tensor.view(torch.int32)},
        "shape": {"a": tensor.reshape(2, 2)},
        "value": {"a": tensor * 2},
    }[change]
    assert fingerprint(other) != fingerprint({"a": tensor})


def test_the_fingerprint_does_not_see_order_or_strides() -> None:
    a, b = torch.randn(3, 4), torch.randn(2)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a.T.contiguous().T})


def test_a_deflated_checkpoint_is_refused_from_its_directory(tmp_path: Path) -> None:
    """torch stores and never deflates; a hundred megabytes of zeros would fit a hundred kilobytes."""
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/data/0", bytes(100 * 2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeInputError, match="compressed"):
        load(str(tmp_path / "m.pth"), OPTED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_an_older_torch_opens_no_pickle(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights, tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UnsafeInputError, match="too old to open"):
        load(str(tmp_path / "model.pth"), OPTED)


def test_nothing_unpickles_without_restrictions() -> None:
    """A refused pickle is never tried again in another way: there is no other way in the code."""
    code = {path: path.read_text() for path in Path(kswapctl.__file__).parent.rglob("*.py")}
    for word in ("weights_only=False", "import pickle", "joblib.load", "allow_pickle=True", "pickle.load"):
        assert [path.name for path, text in code.items() if word in text] == []
    assert [path.name for path, text in code.items() if "torch.load(" in text] == ["weights.py"]
