"""Shipping: merged weights, ONNX files and PEFT folders compute what the stacked model computes."""

import json
import os
import stat
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from kswap_registry import Registry

from kswapctl.data.images import normalise
from kswapctl.demo.digits import CHECKPOINT
from kswapctl.errors import ParityError
from kswapctl.evaluation.predict import predict
from kswapctl.export.onnx import check_parity, to_fp16
from kswapctl.models.weights import fingerprint, read
from kswapctl.operations.look import test_images as images_of
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Silent
from kswapctl.spec import ModelSpec
from kswapctl.tasks import TASKS

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}


@pytest.fixture(scope="module")
def stacked(trained_home: Path) -> Composed:
    with Registry.open(trained_home, read_only=True) as registry:
        return load_version(registry, registry.resolve("digits"))


@pytest.fixture(scope="module")
def inputs(trained_home: Path, stacked: Composed) -> torch.Tensor:
    """Test images, normalised, an eighth of them."""
    with Registry.open(trained_home, read_only=True):
        pixels = images_of(stacked, [], False, Silent()).pixels[::8]
    return normalise(pixels, stacked.spec.preprocessing)


def test_a_merged_file_is_what_timm_loads(run, tmp_path: Path, stacked: Composed, inputs: torch.Tensor) -> None:
    file = tmp_path / "merged.safetensors"
    made = run("merge", "digits", "-o", file, "--json").json
    assert (made["version"], made["bytes"]) == ("digits@2", file.stat().st_size)
    model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(file), num_classes=10, **SHAPE)
    with torch.inference_mode():
        assert torch.equal(model.eval()(inputs), stacked.network()(inputs))


def test_merging_the_base_gives_the_checkpoint_back(run, tmp_path: Path) -> None:
    run("merge", "digits@base", "-o", tmp_path / "m.safetensors")
    assert fingerprint(read(tmp_path / "m.safetensors")[0]) == fingerprint(read(CHECKPOINT)[0])


def test_others_may_read_a_merged_file_where_the_user_lets_them(look, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert look("merge", "digits", "-o", tmp_path / "m.safetensors").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644


def test_merging_twice_writes_the_same_bytes(run, tmp_path: Path) -> None:
    for name in "ab":
        run("merge", "digits", "-o", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_merged_file_can_be_added_again_and_knows_its_classes(run, tmp_path: Path) -> None:
    run("merge", "digits", "-o", tmp_path / "m.safetensors")
    assert run("add", "again", tmp_path / "m.safetensors").code == 0
    shown = run("show", "again", "--json").json
    assert len(shown["classes"]) == 10
    assert "nine" in shown["classes"]


def test_merging_changes_no_version_and_is_logged(run, home: Path, tmp_path: Path) -> None:
    before = run("list", "--json").json
    run("merge", "digits", "-o", tmp_path / "m.safetensors")
    assert run("list", "--json").json == before
    assert run("log", "--json").json[-1]["action"] == "merge"


def test_unpacked_folders_stacked_by_plain_peft_compute_the_same(
    run, tmp_path: Path, stacked: Composed, inputs: torch.Tensor
) -> None:
    from peft import PeftModel

    for number in (1, 2):
        assert run("unpack", f"digits@{number}", "-o", tmp_path / str(number)).code == 0
    model: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=8, **SHAPE)
    model.load_state_dict(read(CHECKPOINT)[0])
    model.head = torch.nn.Linear(64, 10)  # room for the classes learned
    for number in (1, 2):
        model = PeftModel.from_pretrained(model, str(tmp_path / str(number))).merge_and_unload()
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(inputs), stacked.network()(inputs), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_classifier_alone_is_no_folder_for_peft(run_fresh, digits: Path, tmp_path: Path) -> None:
    line = ("learn", "digits", "--data", digits, "--classes", "nine", "--method", "imprint-only", "-q")
    assert run_fresh(*line).code == 0
    ran = run_fresh("unpack", "digits@1", "-o", tmp_path / "a")
    assert (ran.code, "changes the classifier alone" in ran.err) == (2, True)


def test_one_class_alone_agrees_with_itself() -> None:
    scores = torch.randn(2, 3, 3, 1)
    assert check_parity(scores, scores.clone(), "fp32", TASKS["segmentation"]).agreement == 1


@pytest.mark.parametrize("line", [("unpack", "digits@1"), ("analyze", "digits@1"), ("audit", "digits@2")])
def test_a_file_in_the_place_of_a_folder_is_refused_before_any_work(look, tmp_path: Path, line) -> None:
    (tmp_path / "file").touch()
    ran = look(*line, "-o", tmp_path / "file")
    assert (ran.code, "file is a file" in ran.err) == (2, True)


def test_unpacking_says_what_it_wrote_and_the_base_has_nothing_to_unpack(look, tmp_path: Path) -> None:
    shown = look("unpack", "digits@1", "-o", tmp_path / "a", "--json").json
    assert shown["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert look("unpack", "digits@base", "-o", tmp_path / "b").code == 2
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def exported(request: pytest.FixtureRequest, trained_home: Path, tmp_path_factory: pytest.TempPathFactory):
    import shutil

    from typer.testing import CliRunner

    from kswapctl.cli import app

    folder = tmp_path_factory.mktemp("export")
    home = shutil.copytree(trained_home, folder / "registry")
    flags = [] if request.param == "fp32" else [f"--{request.param}"]
    line = ["export", "digits", "-o", str(folder / "d.onnx"), "--every", "--json", "--quiet", *flags]
    result = CliRunner(env={"KSWAP_HOME": str(home)}).invoke(app, line)
    assert result.exit_code == 0, result.output
    return request.param, folder / "d.onnx", json.loads(result.stdout)


def test_an_exported_file_agrees_with_the_model(exported, stacked: Composed, inputs: torch.Tensor) -> None:
    precision, file, shown = exported
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])
    with torch.inference_mode():
        expected = stacked.network()(inputs)
    tolerance = {"fp32": 1e-3, "fp16": 0.1, "int8": 3.0}[precision]
    assert (outputs - expected).abs().max() < tolerance
    assert (outputs.argmax(1) == expected.argmax(1)).float().mean() >= {"fp32": 1, "fp16": 0.98, "int8": 0.9}[precision]
    assert shown["images_checked"] > 400
    assert shown["precision"] == precision


@pytest.mark.parametrize("batch", [1, 7])
def test_an_exported_file_takes_any_batch(exported, inputs: torch.Tensor, batch: int) -> None:
    session = onnxruntime.InferenceSession(str(exported[1]), providers=["CPUExecutionProvider"])
    part = inputs[:batch].numpy()
    assert session.run(None, {"images": part})[0].shape == (batch, 10)
    assert session.get_inputs()[0].shape[1:] == [3, 16, 16]
    assert session.get_inputs()[0].type == "tensor(float)"


def test_an_exported_file_says_how_to_feed_it_and_where_it_comes_from(exported, stacked: Composed) -> None:
    model = onnx.load(exported[1])
    told = json.loads({p.key: p.value for p in model.metadata_props}["kswapctl"])
    assert told["classes"] == list(stacked.knowledge.classes)
    assert told["preprocessing"] == stacked.spec.preprocessing.to_json()
    assert [(v["kind"], v["classes"]) for v in told["lineage"]] == [("learn", ["eight", "nine"]), ("forget", ["three"])]
    assert told["forgotten"] == ["three"]
    onnx.checker.check_model(model)


def test_a_smaller_precision_is_a_smaller_file(exported) -> None:
    precision, _, shown = exported
    whole = CHECKPOINT.stat().st_size
    assert shown["bytes"] < {"fp32": 1.5, "fp16": 0.95, "int8": 0.7}[precision] * whole


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_that_are_too_large_for_one_file_lie_beside_it(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("kswapctl.export.onnx.LARGE", 0)
    (tmp_path / "out").mkdir()
    line = ("export", "digits", *([] if precision == "fp32" else [f"--{precision}"]), "-o")
    assert run(*line, tmp_path / "out" / "d.onnx").code == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    sizes = {file.name: file.stat().st_size for file in moved.iterdir()}
    assert set(sizes) == {"d.onnx", "d.onnx.data"}
    assert sizes["d.onnx.data"] < {"fp32": 1.05, "fp16": 0.55, "int8": 0.4}[precision] * CHECKPOINT.stat().st_size
    onnxruntime.InferenceSession(str(moved / "d.onnx"), providers=["CPUExecutionProvider"])
    if precision != "fp32":  # what follows is the same with each
        return
    (moved / "d.onnx").unlink()
    ran = run(*line, moved / "d.onnx")
    assert (ran.code, "d.onnx.data exists" in ran.err) == (2, True)
    assert {file.name for file in moved.iterdir()} == {"d.onnx.data"}
    monkeypatch.undo()
    shown = run(*line, moved / "d.onnx", "--overwrite", "--json").json
    assert {file.name for file in moved.iterdir()} == {"d.onnx"}
    assert shown["bytes"] == (moved / "d.onnx").stat().st_size


@pytest.mark.parametrize("fault", ["weights", "preprocessing", "nan"])
def test_an_export_that_computes_something_else_is_not_kept(
    run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from kswapctl.operations import ship

    made: list[torch.nn.Module] = []

    def pretend(network: torch.nn.Module, spec: object, path: Path, *_: object) -> None:
        made.append(network)
        path.write_bytes(b"onnx")

    def wrong(path: Path, pixels: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
        outputs = predict(made[0], 255 - pixels if fault == "preprocessing" else pixels, spec.preprocessing)
        return {"weights": outputs + 0.05, "nan": outputs * float("nan")}.get(fault, outputs)

    monkeypatch.setattr(ship, "write_onnx", pretend)
    monkeypatch.setattr(ship, "run_onnx", wrong)
    (tmp_path / "out").mkdir()
    ran = run("export", "digits", "-o", tmp_path / "out" / "d.onnx")
    assert ran.code == 22
    assert "it was not kept" in ran.err
    assert list((tmp_path / "out").iterdir()) == []
    assert "export" not in {e["action"] for e in run("log", "--json").json}


def test_an_operator_that_takes_one_value_twice_is_turned_to_half_precision(tmp_path: Path) -> None:
    """The converter keeps Max in fp32, and casts what it takes once for each time it takes it."""
    helper = onnx.helper
    places = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    nodes = [helper.make_node("Relu", ["x"], ["h"], "relu"), helper.make_node("Max", ["h", "h"], ["y"], "max")]
    graph = helper.make_graph(nodes, "g", places[:1], places[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    to_fp16(file, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": torch.tensor([-1.0, 2.0]).numpy()})[0].tolist() == [0.0, 2.0]


def test_parity_worked_by_hand() -> None:
    """Allowed: 1e-4 + 1e-3 * |logit|; a top-1 that differs within a margin of 1e-3 is no disagreement."""
    expected = torch.tensor([[2.0, 1.0], [1.0, 1.0005]])
    fine = torch.tensor([[2.002, 1.0], [1.0006, 1.0004]])
    parity = check_parity(expected, fine, "fp32", TASKS["classification"])
    assert parity.largest == pytest.approx(0.002, rel=1e-2)
    assert (parity.images, parity.agreement) == (2, 0.5)
    with pytest.raises(ParityError):
        check_parity(expected, fine + torch.tensor([0.0, 0.002]), "fp32", TASKS["classification"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_another_answer_where_the_model_was_sure_is_a_parity_error(precision: str) -> None:
    expected = torch.tensor([[2.0, 1.0]]).repeat(20, 1)
    with pytest.raises(ParityError):
        check_parity(expected, expected.flip(1), precision, TASKS["classification"])  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["merge", "export"])
@pytest.mark.parametrize("place", ["exists", "folder", "link", "registry", "nowhere"])
def test_an_output_in_the_way_is_refused(run, home: Path, tmp_path: Path, command: str, place: str, state) -> None:
    kind = {"merge": "safetensors", "export": "onnx"}[command]
    there = tmp_path / f"there.{kind}"
    out = {
        "exists": there,
        "folder": tmp_path / f"folder.{kind}",
        "link": tmp_path / f"link.{kind}",
        "registry": home / f"out.{kind}",
        "nowhere": tmp_path / "no" / "such" / f"out.{kind}",
    }[place]
    there.write_text("mine")
    (tmp_path / f"folder.{kind}").mkdir()
    (tmp_path / f"link.{kind}").symlink_to(there)
    before = state(home)
    ran = run(command, "digits", "-o", out)
    assert ran.code == 2
    assert out.name in ran.err or "no folder" in ran.err
    assert there.read_text() == "mine"
    assert state(home) == before


@pytest.mark.parametrize(
    "line", ["unpack digits@1 -o {}", "unpack digits@1 -o {}/blobs", "show-predictions digits -o {}/x.png"]
)
def test_nothing_is_written_into_the_registry(run, home: Path, line: str, state) -> None:
    before = state(home)
    ran = run(*line.format(home).split(), "--overwrite")
    assert (ran.code, "is inside the registry" in ran.err) == (2, True), ran.err
    assert state(home) == before


def test_merged_weights_are_named_for_what_they_are(run, tmp_path: Path) -> None:
    for name in ("m.pth", "m"):
        ran = run("merge", "digits", "-o", tmp_path / name)
        assert (ran.code, "name it m.safetensors" in ran.err) == (2, True)


def test_an_output_is_replaced_when_told(run, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    assert run("merge", "digits", "-o", tmp_path / "m.safetensors", "--overwrite").code == 0
    assert read(tmp_path / "m.safetensors")[0]


def test_two_precisions_at_once_are_refused(look, tmp_path: Path) -> None:
    assert look("export", "digits", "-o", tmp_path / "d.onnx", "--fp16", "--int8").code == 2
