"""Operations from the command line: the same seed, long stacks, interruptions, and what is recorded."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from kswap_registry import Registry

from kswapctl.errors import DivergedError
from kswapctl.models.building import create
from kswapctl.models.weights import read, write
from kswapctl.operations.versions import load_version

STEPS = ("--preset", "fewest", "--quiet")


def fingerprints(home: Path) -> list[tuple[str, str]]:
    with Registry.open(home, read_only=True) as registry:
        return [(v.adapter, v.weights) for v in registry.versions("digits")[1:]]


def test_learning_appends_rows_and_forgetting_leaves_the_classifier(look) -> None:
    one, two = (look("show", f"digits@{n}", "--json").json for n in (1, 2))
    assert one["state"]["classes"][-2:] == ["eight", "nine"]
    assert two["state"]["classes"] == one["state"]["classes"]
    assert two["state"]["forgotten"] == {"three": 2}


def test_a_learn_adapter_holds_the_new_rows_and_a_forget_adapter_none(trained_home: Path) -> None:
    with Registry.open(trained_home, read_only=True) as registry:
        one, two = (
            read(registry.blob(registry.resolve(f"digits@{n}").files["adapter_model.safetensors"]))[0] for n in (1, 2)
        )
    assert one["base_model.model.head.weight"].shape == (10, 64)
    assert not any(".head." in name for name in two)


def test_what_was_used_is_recorded(look, digits: Path) -> None:
    version = look("show", "digits@1", "--json").json
    data = version["state"]["record"]["data"]
    assert version["spec"]["seed"] == 0
    assert version["spec"]["source"] == str(digits)
    assert all(len(d["commitment"]) == 64 and d["images"] > 0 for d in data.values())
    known, training = 8, 1347  # a tenth of what is known, of about 135 training images a digit
    assert data["retain"]["images"] == pytest.approx(0.1 * training * known / 10, abs=known)


@pytest.mark.parametrize("kind", ["learn", "forget"])
def test_the_same_seed_makes_the_same_adapter_bit_for_bit(
    fresh: Path, tmp_path: Path, digits: Path, invoke, kind: str
) -> None:
    twin = Path(shutil.copytree(fresh, tmp_path / "twin"))
    line = (kind, "digits", "--data", digits, "--classes", "eight" if kind == "learn" else "two")
    for home in (fresh, twin):
        torch.randn(3)  # the state of the process does not matter
        assert invoke(home, *line, *STEPS, "--seed", "5").code == 0
    assert fingerprints(fresh) == fingerprints(twin)


def test_another_seed_makes_another_adapter(fresh: Path, tmp_path: Path, invoke) -> None:
    twin = Path(shutil.copytree(fresh, tmp_path / "twin"))
    for home, seed in ((fresh, 0), (twin, 1)):
        invoke(home, "forget", "digits", "--classes", "two", *STEPS, "--seed", seed)
    assert fingerprints(fresh) != fingerprints(twin)


def test_fewer_retained_images_may_be_asked_for_by_number(run_fresh) -> None:
    run_fresh("forget", "digits", "--classes", "two", "--retain-per-class", "3", *STEPS)
    version = run_fresh("show", "digits@1", "--json").json
    assert version["state"]["record"]["data"]["retain"]["images"] == 3 * 7


def test_only_the_chosen_blocks_change(run_fresh) -> None:
    run_fresh("forget", "digits", "--classes", "two", "--blocks", "last:2", *STEPS)
    changed = {b["name"] for b in run_fresh("diff", "digits@base", "digits", "--json").json["blocks"] if b["change"]}
    assert changed == {"blocks.4", "blocks.5"}


def test_the_targets_stop_the_training(run_fresh) -> None:
    ran = run_fresh(
        "forget", "digits", "--classes", "two", "--target-forget", "1", "--max-retain-drop", "1",
        "--preset", "few", "--set", "cycles=3", "--json",
    )  # fmt: skip
    assert ran.json[0]["met"] is True
    assert ran.json[0]["steps"] <= 12


def test_targets_that_were_not_met_are_told(run_fresh) -> None:
    ran = run_fresh("forget", "digits", "--classes", "two", "--preset", "fewest")
    assert ran.code == 0
    assert "the targets were not met" in ran.err


@pytest.mark.parametrize(("order", "kinds"), [("lf", "lf"), ("fl", "fl"), ("flf", "flf"), ("lfl", "lfl")])
def test_swap_makes_one_adapter_a_letter(run_fresh, digits: Path, order: str, kinds: str) -> None:
    line = ("swap", "digits", "--learn", digits, "--classes", "eight", "--forget", "two", "--order", order)
    ran = run_fresh(*line, "--preset", "fewest", "--json", "--quiet")
    assert ran.code == 0, ran.out
    assert "".join(r["kind"][0] for r in ran.json) == kinds


def test_a_swap_that_learns_twice_learns_the_same_classes_again(run_fresh, digits: Path) -> None:
    line = ("swap", "digits", "--learn", digits, "--forget", "two", "--order", "lfl", "--preset", "fewest")
    learned, forgotten, again = run_fresh(*line, "--json", "--quiet").json
    assert (learned["classes"], forgotten["classes"]) == (["eight", "nine"], ["two"])
    assert again["classes"] == learned["classes"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [(DivergedError("it cannot be done"), 17), (KeyboardInterrupt(), 130), (MemoryError(), 16)],
    ids=["diverged", "Ctrl-C", "memory"],
)
def test_what_was_done_before_a_failure_is_told(
    run_fresh, digits: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int
) -> None:
    from kswapctl.operations import change

    real, calls = change.operate, []

    def fail_later(*given):
        calls.append(given)
        if len(calls) > 1:
            raise failure
        return real(*given)

    monkeypatch.setattr(change, "operate", fail_later)
    ran = run_fresh("swap", "digits", "--learn", digits, "--forget", "two", "--preset", "fewest")
    assert ran.code == code
    assert "done before that, and kept: digits@1" in ran.err


def test_looking_for_blocks_leaves_the_network_as_it_was(run_fresh) -> None:
    """Retraining begins by drawing weights anew, also where it is only asked for its gradient."""
    line = ("forget", "digits", "--classes", "two", "--method", "retrain", "--blocks", "auto")
    settings = [part for text in ("steps=2", "retain_views=1", "change_views=1") for part in ("--set", text)]
    assert run_fresh(*line, *settings, "--quiet").code == 0
    assert run_fresh("show", "digits@1", "--json").json["metrics"]["retain before"] > 0.8


def test_where_images_of_what_stays_are_is_remembered(run_fresh, digits: Path, tmp_path: Path) -> None:
    from kswapctl.demo.digits import CHECKPOINT

    new = tmp_path / "new"
    for part in ("train", "test"):
        shutil.copytree(digits / part / "nine", new / part / "nine")
    assert run_fresh("add", "bare", CHECKPOINT).code == 0
    learn = ("learn", "bare", "--data", new, "--preset", "fewest")
    assert run_fresh(*learn, "--retain-data", digits).code == 0
    sets = {s["name"]: s["images"] for s in run_fresh("eval", "bare", "--json").json["sets"]}
    assert sets["retain"] > sets["learned"] > 0
    assert run_fresh("forget", "bare", "--classes", "two", "--preset", "fewest").code == 0


def test_data_that_is_gone_is_not_needed_where_other_data_is_named(run_fresh, digits: Path, tmp_path: Path) -> None:
    from kswapctl.demo.digits import CHECKPOINT

    there = shutil.copytree(digits, tmp_path / "there")
    assert run_fresh("add", "moved", CHECKPOINT, "--data", there).code == 0
    shutil.rmtree(there)
    line = ("forget", "moved", "--classes", "two", "--preset", "fewest")
    ran = run_fresh(*line)
    assert (ran.code, "no such data" in ran.err) == (3, True)
    assert run_fresh(*line, "--data", digits).code == 0
    assert run_fresh("forget", "moved", "--classes", "three", "--preset", "fewest").code == 3  # one of two is gone


def test_a_stack_of_ten_evaluates_rolls_back_and_merges(run_fresh, fresh: Path, digits: Path, tmp_path: Path) -> None:
    lines = [("learn", "eight"), ("forget", "one"), ("learn", "nine"), ("forget", "two"), ("forget", "eight")]
    for kind, name in [
        *lines,
        ("learn", "one"),
        ("learn", "two"),
        ("forget", "six"),
        ("learn", "eight"),
        ("forget", "nine"),
    ]:
        ran = run_fresh(kind, "digits", "--data", digits, "--classes", name, *STEPS)
        assert ran.code == 0, ran.err
    sets = {s["name"]: s["classes"] for s in run_fresh("eval", "digits", "--json").json["sets"]}
    assert sets == {"retain": 5, "learned": 3, "forgotten": 1, "forgotten earlier": 1}
    with Registry.open(fresh, read_only=True) as registry:
        top = load_version(registry, registry.resolve("digits@10"))
    run_fresh("merge", "digits", "-o", tmp_path / "m.safetensors")
    merged, _ = read(tmp_path / "m.safetensors")
    assert all(torch.equal(merged[k], top.weights[k]) for k in top.weights)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
    timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "m.safetensors"), num_classes=10, **shape)
    assert run_fresh("rollback", "digits", "--to", "-9", "--json").json["head"] == "digits@1"


@pytest.mark.parametrize("where", ["reading", "training", "committing"])
def test_an_interrupted_operation_leaves_the_registry_as_it_was(
    run, home: Path, state, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from kswapctl.cli import render
    from kswapctl.operations import change

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if where == "committing":
        monkeypatch.setattr(change, "save", interrupt)
    else:
        monkeypatch.setattr(render.Live, "advance" if where == "reading" else "figures", interrupt)
    before = state(home)
    ran = run("forget", "digits", "--classes", "two", *STEPS)
    assert ran.code == 130
    assert "interrupted" in ran.err
    assert state(home) == before
    monkeypatch.undo()
    assert run("rollback", "digits").code == 0


def test_batchnorm_statistics_do_not_move_in_training(fresh: Path, digits: Path, tmp_path: Path, invoke) -> None:
    names = ["zero", "one", "two", "three"]
    weights = create("test_resnet", {}, len(names)).state_dict()
    for name, tensor in weights.items():  # fresh residual branches are multiplied by zero, and learn nothing at first
        if name.endswith("weight") and tensor.ndim == 1:
            tensor.fill_(1.0)
    write(weights, tmp_path / "net.safetensors", {"architecture": "test_resnet", "classes": names})
    assert invoke(fresh, "add", "net", tmp_path / "net.safetensors", "--data", digits).code == 0
    ran = invoke(fresh, "forget", "net", "--classes", "two", *STEPS)
    assert ran.code == 0, ran.err
    with Registry.open(fresh, read_only=True) as registry:
        base, now = (load_version(registry, registry.resolve(f"net@{v}")).weights for v in ("base", "1"))
    statistics = [k for k in base if "running_" in k or "num_batches" in k]
    assert statistics
    assert all(torch.equal(base[k], now[k]) for k in statistics)
    assert any(not torch.equal(base[k], now[k]) for k in base)


def test_an_operation_on_a_branch_leaves_main_alone(run, home: Path) -> None:
    assert run("branch", "digits@base", "dev").code == 0
    main = run("list", "digits", "--json").json
    ran = run("forget", "digits@dev", "--classes", "two", *STEPS, "--json")
    assert ran.code == 0, ran.err
    after = run("list", "digits", "--json").json
    assert after[-1]["parent"] == 0
    assert [v["number"] for v in after if v["head"]] == [v["number"] for v in main if v["head"]]


def test_a_version_in_the_middle_is_not_operated_on(run, home: Path) -> None:
    ran = run("forget", "digits@1", "--classes", "two", *STEPS)
    assert ran.code == 2
    assert "branch" in ran.err


def test_where_nothing_to_retain_is_found_is_named(run_fresh, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "train" / "nine", tmp_path / "else" / "train" / "nine")
    line = ("learn", "digits", "--data", digits, "--classes", "eight", "--retain-data", tmp_path / "else")
    ran = run_fresh(*line)
    assert (ran.code, f"to retain in {tmp_path / 'else'}" in ran.err) == (4, True), ran.err


def test_the_record_says_with_what_it_was_computed(trained_home: Path) -> None:
    import json

    with Registry.open(trained_home, read_only=True) as registry:
        told = json.dumps([e.payload for e in registry.events()] + [v.spec for v in registry.versions("digits")])
    assert all(f'"{name}": ' in told for name in ("torch", "timm", "transformers", "peft", "safetensors", "python"))
