"""``kswapctl audit`` on a real stack: verdicts, references, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FEW = ("--set", "steps=12", "--set", "retain_views=2", "--set", "change_views=2")
QUICK = ("--tier", "quick", "--json", "-q")


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of the demo's architecture, which knows no class."""
    from kswapctl.demo.train import SPEC
    from kswapctl.models.building import build
    from kswapctl.models.weights import write
    from kswapctl.runtime import seed_everything

    seed_everything(0)
    file = tmp_path_factory.mktemp("reference") / "untrained.safetensors"
    write(build(SPEC).state_dict(), file, SPEC.to_json())
    return file


def measured(report: Any) -> dict[str, Any]:
    return {m["id"]: m for m in report["measures"]}


def test_without_a_reference_an_audit_cannot_tell(run) -> None:
    ran = run("audit", "digits", *QUICK)
    found = measured(ran.json)
    assert ran.json["reference"]["kind"] == "R4"
    assert ran.json["forgotten"] == ["three"]
    assert found["M5"]["level"] == "inconclusive"
    assert ran.code == (20 if found["M1 forgotten"]["level"] == "fail" else 21)


def test_a_base_that_was_restored_fails(run) -> None:
    ran = run("audit", "digits@base", "--classes", "three", *QUICK)
    assert (ran.code, ran.json["verdict"]["answer"]) == (20, "FAIL")


def test_a_masked_classifier_does_not_pass(run, digits: Path, tmp_path: Path, network_file: Path) -> None:
    from kswapctl.demo.digits import CHECKPOINT
    from kswapctl.models.checkpoint import Description, load
    from kswapctl.models.weights import write

    checkpoint = load(str(CHECKPOINT), Description())
    row = checkpoint.spec.classes.index("three")
    weights = {k: v.clone() for k, v in checkpoint.weights.items()}
    weights["head.weight"][row], weights["head.bias"][row] = 0.0, -100.0
    write(weights, tmp_path / "masked.safetensors", checkpoint.spec.to_json())
    assert run("add", "masked", tmp_path / "masked.safetensors", "--data", digits).code == 0
    ran = run("audit", "masked", "--classes", "three", "--reference", network_file, *QUICK)
    found = measured(ran.json)
    assert (ran.code, ran.json["verdict"]["answer"]) == (20, "SUPPRESSED")
    assert (found["M1 forgotten"]["value"], found["M1 forgotten"]["level"]) == (0.0, "pass")
    assert (found["M5"]["value"], found["M5"]["votes"]) == (1.0, True)


def test_what_was_forgotten_twice_is_held_against_what_knew_it(run) -> None:
    assert run("forget", "digits", "--classes", "three", "--again", *FEW).code == 0
    ran = run("audit", "digits", *QUICK)
    assert (ran.json["original"], ran.json["forgotten"]) == ("digits@1", ["three"])


def test_a_merged_base_is_held_against_what_knew_it_before(run, digits: Path, tmp_path: Path) -> None:
    data = ("--data", digits)
    file = tmp_path / "clean.safetensors"
    assert run("merge", "digits", "-o", file).code == 0
    assert run("add", "clean", file).code == 0
    one, two = (run("audit", ref, "--classes", "three", *QUICK, *data) for ref in ("digits", "clean"))
    assert (one.json["original"], two.json["original"]) == ("digits@1", "digits@1")
    assert [m["value"] for m in one.json["measures"]] == [m["value"] for m in two.json["measures"]]


@pytest.mark.parametrize("deep", [1, 2])
def test_a_merged_base_is_held_against_the_stack_before_its_classes_were_learned(
    run_fresh, digits: Path, tmp_path: Path, deep: int
) -> None:
    file = tmp_path / "clean.safetensors"
    lessons = ["eight", "nine"][-deep:]
    for name in lessons:
        assert run_fresh("learn", "digits", "--data", digits, "--classes", name, *FEW).code == 0
    assert run_fresh("forget", "digits", "--classes", lessons[-1], *FEW).code == 0
    assert run_fresh("merge", "digits", "-o", file).code == 0
    assert run_fresh("add", "clean", file).code == 0
    found = [
        run_fresh("audit", ref, "--classes", lessons[-1], *QUICK, "--data", digits).json["reference"]["kind"]
        for ref in ("digits", "clean")
    ]
    assert found == ["R2", "R2"]


def test_too_few_steps_fail(run) -> None:
    assert run("forget", "digits", "--classes", "two", "--set", "steps=1", "--set", "cycles=1", *FEW[2:]).code == 0
    ran = run("audit", "digits", *QUICK)
    assert (ran.code, ran.json["verdict"]["answer"]) == (20, "FAIL")


def test_a_version_that_is_its_own_original_is_looked_at_once(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kswapctl.operations import audit

    looked: list[str] = []
    look = audit.look
    monkeypatch.setattr(audit, "look", lambda known, *rest: looked.append(known.name) or look(known, *rest))
    assert run("audit", "digits@base", "--classes", "three", *QUICK).code == 20
    assert looked == ["digits@base"]


@pytest.fixture(scope="module")
def exported(trained_home: Path, tmp_path_factory: pytest.TempPathFactory, invoke) -> Path:
    """The head of digits as an ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    home = shutil.copytree(trained_home, folder / "registry")
    assert invoke(home, "export", "digits", "-o", folder / "digits.onnx").code == 0
    return folder / "digits.onnx"


def test_an_exported_file_says_what_the_model_says(trained_home: Path, exported: Path) -> None:
    from kswap_registry import Registry

    from kswapctl.operations.audit_material import Request, choose_images, choose_subject
    from kswapctl.operations.audit_networks import check_file, ship
    from kswapctl.progress import Silent

    request = Request(onnx=exported)
    with Registry.open(trained_home, read_only=True) as registry:
        version = registry.resolve("digits")
        subject = choose_subject(registry, version, request)
    check_file(subject.audited, request)
    images = choose_images(subject, version.state["sources"], request, Silent())
    forms = ship(subject.audited, images, request, Silent())
    assert forms["onnx"].forgotten.images == len(images["forget test"])
    assert abs(forms["onnx"].retained.value - forms["fp16"].retained.value) < 0.02


def test_files_that_are_no_export_of_it_are_refused_at_once(run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for ref, file, code, words in (
        ("digits", tmp_path / "text.onnx", 4, "does not run as an exported model"),
        ("digits", tmp_path / "none.onnx", 3, "no such file"),
        ("digits@base", exported, 13, "has 10 classes, digits@base has 8"),
    ):
        ran = run("audit", ref, "--classes", "three", "--onnx", file, "--json", "-q")
        assert (ran.code, words in ran.json["message"]) == (code, True), ran.out
    ran = run("audit", "digits", "--onnx", exported, *QUICK)
    assert (ran.code, ran.json["kind"]) == (2, "usage")


def test_a_reference_that_lacks_what_must_stay_is_refused(run, tmp_path: Path) -> None:
    import dataclasses

    from kswapctl.demo.train import SPEC
    from kswapctl.models.building import build
    from kswapctl.models.weights import write

    spec = dataclasses.replace(SPEC, classes=tuple(c for c in SPEC.classes if c not in {"two", "three"}))
    write(build(spec).state_dict(), tmp_path / "less.safetensors", spec.to_json())
    ran = run("audit", "digits@base", "--classes", "three", "--reference", tmp_path / "less.safetensors", *QUICK)
    assert ran.code == 13
    assert "does not know 'two'" in ran.json["message"]


def test_a_learned_class_is_held_against_the_stack_before_it(run) -> None:
    assert run("forget", "digits", "--classes", "eight", *FEW).code == 0
    ran = run("audit", "digits", *QUICK)
    assert ran.json["reference"] == {"kind": "R2", "what": "digits@base"}
    assert ran.json["original"] == "digits@2"
    assert measured(ran.json)["M5"]["value"] is not None


def test_a_deep_audit_writes_its_report_and_records_itself(run, tmp_path: Path, network_file: Path) -> None:
    folder = tmp_path / "audit"
    ran = run("audit", "digits@2", "--tier", "deep", "--reference", network_file, "-o", folder)
    assert ran.code == 20, ran.err
    report = json.loads((folder / "audit.json").read_text())
    assert {m[:2] for m in measured(report)} == {"M1", "M2", "M3", "M4", "M5", "M6", "M7"}
    assert set(report["curves"]) == {"own rows", "blank rows", "fresh LoRA"}
    assert set(report["curves"]["fresh LoRA"]) == {"original", "audited", "head-masked", "reference"}
    assert report["residue"]["level"] == "SUPPRESSED"
    assert (folder / "audit.png").stat().st_size > 10_000
    assert report["verdict"]["answer"] in ran.out
    event = run("log", "digits", "--json").json[-1]
    assert (event["action"], event["number"]) == ("audit", 2)
    assert event["payload"]["verdict"] == report["verdict"]["answer"]
    said = ran.out + ran.err + (folder / "audit.json").read_text()
    assert "compliant" not in said.lower()
    assert "erased" not in said.lower()


def test_two_audits_differ_in_nothing_but_time(run) -> None:
    one, two = (run("audit", "digits", *QUICK).json for _ in range(2))
    assert one.pop("time") != {}
    two.pop("time")
    assert one == two


@pytest.mark.slow
def test_two_deep_audits_differ_in_nothing_but_time(run, network_file: Path) -> None:
    line = ("audit", "digits@base", "--classes", "three", "--tier", "deep", "--reference", network_file, "--json", "-q")
    one, two = (run(*line).json for _ in range(2))
    assert one.pop("time") != {}
    two.pop("time")
    assert one == two


def test_the_original_of_a_forgotten_class_is_the_version_below(run) -> None:
    assert run("audit", "digits", *QUICK).json["original"] == "digits@1"


def test_a_reference_of_another_architecture_is_refused(run, tmp_path: Path) -> None:
    import dataclasses

    from kswapctl.demo.train import SPEC
    from kswapctl.models.building import build
    from kswapctl.models.weights import write

    spec = dataclasses.replace(SPEC, arguments=SPEC.arguments | {"depth": 2})
    write(build(spec).state_dict(), tmp_path / "other.safetensors", spec.to_json())
    ran = run("audit", "digits", "--reference", tmp_path / "other.safetensors", *QUICK)
    assert (ran.code, ran.json["kind"]) == (13, "wrong-base")


def test_a_reference_that_knows_the_class_is_refused(run) -> None:
    from kswapctl.demo.digits import CHECKPOINT

    ran = run("audit", "digits", "--reference", CHECKPOINT, *QUICK)
    assert ran.code == 4
    assert "was trained with those classes" in ran.json["message"]


def test_a_control_of_few_classes_is_refused(run, digits: Path) -> None:
    ran = run("audit", "digits", "--control", digits, *QUICK)
    assert ran.code == 4
    assert "0 never-known classes" in ran.json["message"]


def test_never_known_classes_stand_in_for_a_reference(run, digits: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for index, name in enumerate(("zero", "one", "two", "four", "six")):
            shutil.copytree(digits / part / name, tmp_path / part / f"new{index}")
    ran = run("audit", "digits", "--control", tmp_path, *QUICK)
    assert ran.json["reference"] == {"kind": "R3", "what": "never-known classes"}
    assert measured(ran.json)["M2"]["value"] is not None


@pytest.mark.parametrize("name", ["three", "zero"])
def test_an_image_that_forgetting_saw_is_no_test_image(run, digits: Path, tmp_path: Path, name: str) -> None:
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    for seen in sorted((data / "train" / name).iterdir())[1:]:  # these are now in the data of training alone
        seen.rename(data / "test" / name / f"copy-{seen.name}")
    ran = run("audit", "digits", "--data", data, *QUICK)
    assert ran.code == 4
    assert f"test/{name}/copy-" in ran.json["message"]
    assert "is also the training image" in ran.json["message"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (("digits@base",), 2),
        (("digits", "--classes", "thre"), 3),
        (("digits", "--tier", "slow"), 2),
        (("digits", "--data", "nowhere"), 3),
        (("digits", "--reference", "nowhere.safetensors"), 3),
        (("nobody",), 3),
    ],
)
def test_what_does_not_fit_is_refused_and_not_recorded(run, line: tuple[str, ...], code: int) -> None:
    before = run("log", "--json").json
    ran = run("audit", *line, "-q")
    assert ran.code == code, ran.err
    assert ran.err.startswith("error:")
    assert run("log", "--json").json == before


def test_few_images_are_told(run, digits: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    for file in sorted((data / "test" / "three").iterdir())[12:]:
        file.unlink()
    ran = run("audit", "digits", "--data", data, *QUICK)
    assert ran.code in {20, 21}
    assert any("12 test images" in reason for reason in ran.json["verdict"]["reasons"])
