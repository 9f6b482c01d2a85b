"""Bad input: each with its exit code, one clear line, and a registry that stays as it was."""

import fcntl
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

QUICK = ("--preset", "fewest", "--quiet")
WRONG = [
    ("learn digits --data {digits} --classes ten", 3, "no class 'ten'"),
    ("forget digits --classes ten", 3, "no class 'ten'"),
    ("forget digits --classes thre", 3, "no class 'thre'"),
    ("learn nobody --data {digits}", 3, "no model 'nobody'"),
    ("forget nobody --classes two", 3, "no model 'nobody'"),
    ("eval nobody", 3, "no model 'nobody'"),
    ("eval digits@9", 3, "no version 'digits@9'"),
    ("rollback digits --to 9", 3, "no version 'digits@9'"),
    ("rollback digits --to -9", 3, "digits"),
    ("merge digits@nowhere -o {tmp}/m.safetensors", 3, "nowhere"),
    ("diff digits@9 digits", 3, "digits@9"),
    ("merge digits -o {tmp}", 2, "is a folder"),
    ("show-predictions digits -o {tmp}", 2, "is a folder"),
    ("apply {tmp}", 2, "is a folder"),
    ("import {tmp}", 2, "is a folder"),
    ("import {pickle} --sha256 abc", 2, "'abc' is no SHA-256"),
    ("verify {tmp}", 2, "is a folder"),
    ("add x {pickle} --classes-file {tmp}", 2, "is a folder"),
    ("tag digits@9 good", 3, "digits@9"),
    ("tag digits ../good", 2, "../good"),
    ("show -- -rf", 3, "-rf"),
    ("log nobody", 3, "nobody"),
    ("swap digits --learn {digits} --classes two --forget two", 4, "both to be learned and to be forgotten"),
    ("swap digits --learn {zero} --classes ten --forget nobody", 3, "no class 'nobody'"),
    ("log --kept deadbeef", 2, "'deadbeef' is no hash"),
    ("log --kept deadbeefdeadbeef", 12, "not in this history"),
    ("log --kept ...", 2, "'...' is no hash"),
    ("log --kept 000000000000", 12, "not in this history"),
    ("log nobody --verify", 2, "the chain is of all models"),
    ("branch digits --to 1", 2, "--to moves a branch"),
    ("doctor --env --fix", 2, "--env looks at no registry"),
    ("analyze digits --split x", 2, "--split is of a study"),
    ("backup {tmp} --overwrite", 2, "only a .tar file is overwritten"),
    ("forget digits --classes two --set epochs=-1", 2, "epochs must be at least 0"),
    ("forget digits --classes two --set view_strength=7", 2, "view_strength must be from 0 to 1"),
    ("forget digits --classes two --set bound_unit=lnK", 2, "no bound_unit 'lnK'"),
    ("forget digits --classes two --method neggrad+ --set beta=1.5", 2, "beta must be from 0 to 1"),
    ("forget digits --classes two --method scrub --set temperature=0", 2, "temperature must be at least 0.001"),
    ("forget digits --classes two --cache-dir {pickle}", 2, "model.pth is a file"),
    ("forget digits --classes two --cache-dir {pickle}/x", 16, "cannot make"),
    ("learn digits --data {digits} --classes two", 4, "'two' is known already"),
    ("learn digits --data {known}", 4, "is known already"),
    ("forget digits --classes three", 4, "'three' is forgotten already"),
    ("forget digits --classes zero,one,two,four,five,six,seven,eight,nine", 2, "all the classes"),
    ("forget digits --classes ,", 2, "',' names no class"),
    ("learn digits --data {digits} --classes ,", 2, "',' names no class"),
    ("swap digits --learn {digits} --classes , --forget two", 2, "',' names no class"),
    ("forget digits@1 --classes two", 2, "kswapctl branch digits@1 NEW"),
    ("forget digits@9 --classes two", 3, "no version 'digits@9'"),
    ("restore {tmp}/none.tar --registry {tmp}/again", 3, "no such backup"),
    ("add x {empty}", 4, "holds no config.json"),
    ("add x {pickle}s", 3, "model.pth'"),
    ("learn digits --data {empty}", 4, "ten holds no image"),
    ("learn digits --data {tmp}/nowhere", 3, "nowhere"),
    ("eval digits --data {tmp}/nowhere", 3, "nowhere"),
    ("eval digits --data ''", 3, "the data have no name"),
    ("init --registry {pickle}", 16, "something else is where the registry belongs"),
    ("eval digits --data hf:", 3, "hf: names no dataset"),
    ("learn digits --data {zero} --classes ten --retain-data {digits}", 4, "bad.png is empty (0 bytes)"),
    ("learn digits --data {corrupt} --classes ten --retain-data {digits}", 4, "bad.png cannot be read"),
    ("forget digits --classes two --method nothing", 3, "no method 'nothing'"),
    ("forget digits --classes two --depth deeper", 2, "no depth 'deeper'"),
    ("forget digits --classes two --depth deep --method scrub", 2, "depth deep is the method erase, not scrub"),
    ("forget digits --classes two --preset nothing", 2, "no preset 'nothing'"),
    ("forget digits --classes two --set stepz=3", 2, "no hyper-parameter 'stepz'"),
    ("forget digits --classes two --set rank=many", 2, "rank=many"),
    ("forget digits --classes two --set rank", 2, "NAME=VALUE"),
    ("forget digits --classes two --blocks first:2", 2, "first:2"),
    ("forget digits --classes two --device warp", 2, "warp"),
    ("forget digits --classes two --precision fp4", 2, "fp4"),
    ("forget digits --classes two --seed -1", 2, "seed"),
    ("forget digits --classes two --retain-share 1.5", 2, "retain-share"),
    ("methods nothing", 3, "no method 'nothing'"),
    ("add digits {checkpoint} --data {digits}", 2, "digits"),
    ("add ../x {checkpoint}", 2, "../x"),
    ("add x vit_tinny_patch16_224", 3, "vit_tinny_patch16_224"),
    ("add x {tmp}/none.safetensors", 3, "no such file"),
    ("eval digits --history --per-class", 2, "no rows by class"),
    ("add x {checkpoint} --classes a,b", 13, "has 8 classes, but 2 class names"),
    ("add x {checkpoint} --model-arg depth=3", 13, "do not fit"),
    ("add x {checkpoint} --architecture resnet18", 2, "resnet18"),
    ("add x {checkpoint} --mean a,b,c", 4, "mean"),
    ("add x {checkpoint} --std 1,1", 4, "std has 2 values"),
    ("add x {checkpoint} --std 0,1,1", 4, "images are divided by it"),
    ("add x {checkpoint} --classes-file {tmp}/none.txt", 3, "none.txt"),
    ("add x {checkpoint} --classes-file {latin}", 4, "no UTF-8 text"),
    ("add x {nan}", 4, "NaN or infinity"),
    ("add x {pickle}", 15, "is a pickle"),
    ("add x {disguised}", 15, "disguised.safetensors"),
]


@pytest.fixture
def places(digits: Path, tmp_path: Path) -> dict[str, Path]:
    """What the command lines name."""
    from kswapctl.demo.digits import CHECKPOINT

    made = {name: tmp_path / name for name in ("known", "empty", "zero", "corrupt")}
    for name, folder in made.items():
        some = sorted((digits / "train" / "zero").iterdir())[:12]
        label = "zero" if name == "known" else "ten"
        (folder / "train" / label).mkdir(parents=True)
        for file in some if name != "empty" else []:
            shutil.copy(file, folder / "train" / label)
    for file in sorted((digits / "train" / "one").iterdir())[:12]:  # not images of a class that is retained
        for name in ("zero", "corrupt"):
            shutil.copy(file, made[name] / "train" / "ten")
    (made["zero"] / "train" / "ten" / "bad.png").write_bytes(b"")
    (made["corrupt"] / "train" / "ten" / "bad.png").write_bytes(b"<html>not found</html>")
    save_file({"head.weight": torch.full((2, 2), float("nan"))}, tmp_path / "nan.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    (tmp_path / "latin.txt").write_bytes("straße".encode("latin-1"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "disguised.safetensors")
    files = {
        "latin": "latin.txt",
        "nan": "nan.safetensors",
        "pickle": "model.pth",
        "disguised": "disguised.safetensors",
    }
    return (
        made
        | {name: tmp_path / file for name, file in files.items()}
        | {"digits": digits, "tmp": tmp_path, "checkpoint": CHECKPOINT}
    )


@pytest.mark.parametrize(("line", "code", "words"), WRONG, ids=[line for line, _, _ in WRONG])
def test_bad_input_is_one_clear_line_and_changes_nothing(
    line: str, code: int, words: str, trained_home: Path, invoke, state, places: dict[str, Path]
) -> None:
    before = state(trained_home)
    ran = invoke(trained_home, *shlex.split(line.format(**places)))
    assert ran.code == code, ran.err
    assert words in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert state(trained_home) == before


def clear(err: str) -> bool:
    """One line that says what, at most one that says what now."""
    lines = [line for line in err.strip().splitlines() if not line.endswith("...")]
    return lines[0].startswith("error:") and len(lines) <= 2 and all(line.startswith("hint:") for line in lines[1:])


@pytest.mark.parametrize("line", [line for line, code, _ in WRONG if code in {3, 4, 13, 15}])
def test_an_error_of_ours_is_one_line_and_a_hint(
    line: str, trained_home: Path, invoke, places: dict[str, Path]
) -> None:
    assert clear(invoke(trained_home, *line.format(**places).split()).err)


def test_skip_bad_goes_on_and_records_it(run, places: dict[str, Path], digits: Path) -> None:
    ten = places["corrupt"] / "train" / "ten"
    for index, file in enumerate(sorted((digits / "train" / "nine").iterdir())):
        shutil.copy(file, ten / f"more{index}.png")
    for file in (digits / "train" / "zero").iterdir():  # images of what is retained cannot be learned as another
        (ten / file.name).unlink(missing_ok=True)
    for file in (digits / "train" / "one").iterdir():
        (ten / file.name).unlink(missing_ok=True)
    line = ("learn", "digits", "--data", places["corrupt"], "--classes", "ten", "--retain-data", places["known"])
    ran = run(*line, "--skip-bad", "--preset", "fewest")
    assert ran.code == 0, ran.err
    assert "bad.png" in ran.err
    data = run("show", "digits", "--json").json and run("show", "digits@3", "--json").json["state"]["record"]["data"]
    assert sum(d["skipped"] for d in data.values()) == 1
    assert "skipped images" in run("show", "digits@3").out
    shutil.copytree(places["known"] / "train" / "zero", places["corrupt"] / "test" / "ten")
    (places["corrupt"] / "test" / "ten" / "broken.png").write_bytes(b"<html>not found</html>")
    history = ("eval", "digits", "--history", "--data", places["corrupt"], "--data", digits)
    assert run(*history).code == 4
    assert run(*history, "--skip-bad").code == 0


def test_whole_weights_that_become_infinite_register_nothing(fresh: Path, invoke, state) -> None:
    before = state(fresh)
    settings = [part for text in ("lr=1e38", "steps=2", "cycles=1") for part in ("--set", text)]
    ran = invoke(fresh, "forget", "digits", "--classes", "two", "--method", "salun", *settings)
    assert (ran.code, clear(ran.err)) == (17, True), ran.err
    assert state(fresh) == before


@pytest.mark.parametrize("kind", ["learn", "forget"])
def test_a_diverging_training_registers_nothing(fresh: Path, invoke, state, digits: Path, kind: str) -> None:
    before = state(fresh)
    line = (kind, "digits", "--data", digits, "--classes", "eight" if kind == "learn" else "two")
    ran = invoke(fresh, *line, "--preset", "diverging")
    assert ran.code == 17, ran.err
    assert clear(ran.err)
    assert state(fresh) == before


def test_a_full_disk_is_told_and_changes_nothing(home: Path, tmp_path: Path, state) -> None:
    before = state(home)
    code = "from kswapctl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", "digits", "-o", str(tmp_path / "m.safetensors")],
        env=os.environ | {"KSWAP_HOME": str(home)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 16, done.stderr
    assert clear(done.stderr)
    assert list(tmp_path.glob("*m.*")) == []
    assert state(home) == before


def test_a_disk_that_fills_while_an_adapter_is_written_changes_nothing(
    run, home: Path, state, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kswapctl.operations import change

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "adapter")

    monkeypatch.setattr(change, "save", full)
    before = state(home)
    ran = run("forget", "digits", "--classes", "two", *QUICK)
    assert ran.code == 16
    assert "No space left on device" in ran.err
    assert state(home) == before


@pytest.mark.parametrize(
    "line", ["list", "log", "eval digits", "rollback digits", "models", "forget digits --classes a"]
)
def test_without_a_registry_every_command_says_how_to_make_one(
    line: str, invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = invoke(None, *line.split())
    assert ran.code == 10
    assert clear(ran.err)
    assert "kswapctl init" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_busy_registry_is_told_with_its_holder_and_can_be_read(
    run, home: Path, state, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kswap_registry import Registry

    before = state(home)
    monkeypatch.setattr(
        Registry.open.__func__, "__kwdefaults__", {**Registry.open.__func__.__kwdefaults__, "timeout": 0.1}
    )
    with (home / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = run("rollback", "digits")
        assert run("list").code == 0
    assert ran.code == 11
    assert "in use" in ran.err
    assert state(home) == before
    assert run("rollback", "digits").code == 0


@pytest.mark.parametrize("asked", ["option", "variable"])
def test_a_folder_that_has_a_registry_in_it_is_none(home: Path, tmp_path: Path, invoke, asked: str) -> None:
    shutil.move(home, tmp_path / "there" / ".kswap")
    there = tmp_path / "there"
    ran = invoke(there, "list") if asked == "variable" else invoke(None, "list", "--registry", there)
    assert (ran.code, "there is one in" in ran.err) == (10, True), ran.err
