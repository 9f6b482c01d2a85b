"""Studies: cells done once whoever does them, stopped and continued, and summed up as the papers do."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kswap_registry import Registry

from kswapctl.data.images import Images
from kswapctl.data.sources import Sample, Source
from kswapctl.demo.digits import CHECKPOINT
from kswapctl.errors import DataError, NotFoundError, TeamError, UnsafeInputError, UsageError
from kswapctl.evaluation.scores import ClassScore, Evaluation, h_mean
from kswapctl.models.checkpoint import Description
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.look import test_images as read_images
from kswapctl.operations.models import add_model
from kswapctl.operations.studies import gauge, run
from kswapctl.operations.studies.cells import cells_of
from kswapctl.operations.studies.claims import claimed, result_file, work_off
from kswapctl.operations.studies.gauge import Gauge
from kswapctl.operations.studies.schema import place, read_study, settled, shipped
from kswapctl.operations.studies.scores import Sets, measure
from kswapctl.operations.studies.subsets import images_needed, write_subset
from kswapctl.operations.studies.table import for_readers, markdown, seeds_as_text, shown_stage, summarise
from kswapctl.operations.studies.workshop import MODEL, Workshop
from kswapctl.operations.versions import knowledge_of
from kswapctl.progress import Silent
from kswapctl.runtime import threads

TINY = """
version: 1
name: tiny
title: A study of two methods on digits
needs: {base: the demo checkpoint, digits: its images}
base: base
data: digits
seeds: [0, 1]
orders: [lf]
columns: [Acc_r, Acc_l, Acc_f, H, blocks, seconds]
contenders:
  - name: one
    learn: {method: finetune, set: {steps: 2, retain_views: 1, change_views: 1}}
    forget: {method: gs-lora, set: {steps: 2, cycles: 1, retain_views: 1, change_views: 1}}
  - name: two
    learn: {method: imprint-only}
    forget: {method: finetune, set: {steps: 2, cycles: 1, retain_views: 1, change_views: 1}}
splits:
  - name: eight for two
    learn_data: digits
    learn: [eight]
    forget: [[two]]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def given(digits: Path) -> dict[str, str]:
    return {"base": str(CHECKPOINT), "digits": str(digits)}


def free(folder: Path, key: str) -> bool:
    with claimed(folder, key) as mine:
        return mine


def test_a_claim_is_one_s_alone_until_it_is_given_back(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as mine, claimed(tmp_path, "a") as other, claimed(tmp_path, "b") as another:
        assert (mine, other, another) == (True, False, True)
    with claimed(tmp_path, "a") as mine:
        assert mine


def test_a_killed_process_leaves_no_claim(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kswapctl.operations.studies.claims import claimed\n"
        "with claimed(Path(sys.argv[1]), 'a') as mine: print(mine, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "True\n"
    with claimed(tmp_path, "a") as mine:
        assert not mine
    child.kill()
    child.wait()
    child.stdout.close()
    with claimed(tmp_path, "a") as mine:
        assert mine


def test_what_is_done_is_not_done_again_and_what_another_does_is_left_to_it(tmp_path: Path) -> None:
    did = []

    def work(key):
        did.append(key)
        return {"key": key}

    with claimed(tmp_path / "claims", "b"):
        assert work_off(tmp_path, ["a", "b", "c"], work) == 2
    assert did == ["a", "c"]
    assert work_off(tmp_path, ["a", "b", "c"], work) == 1
    assert did == ["a", "c", "b"]
    assert json.loads(result_file(tmp_path, "b").read_text()) == {"key": "b"}


def test_work_that_fails_is_no_result_and_can_be_done_later(tmp_path: Path) -> None:
    def fail(key):
        raise UsageError(key)

    with pytest.raises(UsageError):
        work_off(tmp_path, ["a"], fail)
    assert work_off(tmp_path, ["a"], lambda key: {}) == 1


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_study_is_sound_and_of_a_size_that_ends(name: str) -> None:
    study = read_study(name)
    cells = cells_of(study, dict.fromkeys(study.needs, "x"))
    assert len({c.key for c in cells}) == len(cells)
    assert {c.seed for c in cells} == set(range(max(3, len(study.seeds))))
    begun = {(c.contender.name, c.split.name, c.seed, c.order[:n]) for c in cells for n in range(1, len(c.order) + 1)}
    assert len(begun) <= 160, "operations, about half a minute each on one core"
    assert "signs" in study.needs


def test_the_shipped_studies_are_those_of_the_papers() -> None:
    assert set(shipped()) >= {"swap-table1", "gslora-table1", "gslora-table3", "fewshot", "missing"}


def test_another_value_or_place_makes_another_cell(tiny: Path) -> None:
    study = read_study(str(tiny))
    keys = {c.key for c in cells_of(study, {"base": "x"})}
    assert keys.isdisjoint(c.key for c in cells_of(study, {"base": "y"}))
    tiny.write_text(TINY.replace("steps: 2, cycles: 1", "steps: 3, cycles: 1"))
    assert keys.isdisjoint(c.key for c in cells_of(read_study(str(tiny)), {"base": "x"}))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("method: imprint-only", "method: imprint-olny", "no method 'imprint-olny'"),
        ("orders: [lf]", "orders: [lg]", "orders: an order is made of l and f"),
        ("    forget: [[two]]\n", "", "nothing to forget"),
        ("columns: [Acc_r", "columns: [Acc_x", "columns[0]"),
        ("    learn: {method: imprint-only}\n", "    orders: [fl]\n", "'fl', with which no order begins"),
        ("contenders:", "contestants:", "contestants: is no key here"),
        ("- name: two", "- name: one", "two contenders are called 'one'"),
        ("    forget: [[two]]\n", "    forget: [[two]]\n    missing: 1\n", "cuts the base's images, and learns"),
        ("    forget: [[two]]\n", "    forget: [[two]]\n    draw: {classes: 1}\n", "has both forget and draw"),
        ("    learn: [eight]", "    lessons: [{data: digits, classes: [eight]}]", "has both learn_data and lessons"),
        ("study of two methods", "st\udcfcdy", "is no UTF-8 text"),
        ("forget: [[two]]", "forget: &a [*a]", "holds an alias of what it stands in"),
    ],
)
def test_a_wrong_study_says_what(tiny: Path, right: str, wrong: str, said: str) -> None:
    tiny.write_text(TINY.replace(right, wrong, 1), errors="surrogateescape")
    with pytest.raises(Exception, match=r".") as raised:
        read_study(str(tiny))
    assert said in raised.value.message


def test_what_a_study_needs_must_be_named(tiny: Path) -> None:
    with pytest.raises(UsageError, match="study tiny needs base: the demo checkpoint"):
        place(read_study(str(tiny)), {}, "base")


def test_accuracies_are_over_the_papers_sets() -> None:
    """Tasks (a), (b) of a, b, c, d: in the second, a went before, b goes, c and d stay; images weigh the mean.

    c is right 1 of 1 and d 1 of 3 times: 50; b fell from 60 to 20: H of 50 and 40.
    """
    sets = Sets(("a", "b", "c", "d"), (), (("a",), ("b",)))
    now = {"a": (2, 0.5), "b": (5, 0.2), "c": (1, 1.0), "d": (3, 1 / 3)}
    scores = Evaluation((), tuple(ClassScore(n, i, acc, 0.9) for n, (i, acc) in now.items()), {}, None)
    before = {"per class": {"b": 60.0}}
    found = measure(scores, sets, "ff", before)
    assert {k: found[k] for k in ("Acc_r", "Acc_f", "Acc_o", "Acc_l")} == pytest.approx(
        {"Acc_r": 50.0, "Acc_f": 20.0, "Acc_o": 50.0, "Acc_l": None}
    )
    assert found["drop"] == pytest.approx(40.0)
    assert found["H"] == pytest.approx(100 * h_mean(0.5, 0.4))


def test_of_map_and_miou_each_class_weighs_the_same() -> None:
    scores = Evaluation((), (ClassScore("a", 9, 0.2, 0.5), ClassScore("b", 1, 0.6, 0.5)), {}, None, "mAP")
    assert measure(scores, Sets(("a", "b"), (), ()), "f", None)["Acc_r"] == pytest.approx(40.0)


def test_lessons_come_one_by_one_and_some_classes_are_never_touched() -> None:
    """Of a, b, c one goes in each of two tasks: c is always retained; of lessons x and y only x has come after lf."""
    sets = Sets(("a", "b", "c"), (("x",), ("y",)), (("a",), ("b",)))
    now = {"a": (1, 0.0), "b": (1, 1.0), "c": (2, 0.5), "x": (1, 0.8)}
    scores = Evaluation((), tuple(ClassScore(n, i, acc, 0.75) for n, (i, acc) in now.items()), {}, None)
    found = measure(scores, sets, "lf", None)
    assert {k: found[k] for k in ("Acc_a", "drop_a", "Acc_l")} == pytest.approx(
        {"Acc_a": 50.0, "drop_a": 25.0, "Acc_l": 80.0}
    )
    assert sets.lesson(1) == sets.lesson(5) == ("y",)


def test_a_gauge_measures_what_evaluation_does(trained_home: Path) -> None:
    with Registry.open(trained_home, read_only=True) as registry:
        gauge = Gauge(registry, "digits")
        for version in registry.stack(registry.resolve("digits")):
            data = list(knowledge_of(registry.model("digits"), version).sources)
            assert gauge.scores(version, data) == evaluate_version(registry, version, data, False, "cpu", Silent())


def test_a_gauge_reads_images_once_and_holds_one_set_of_them(trained_home: Path, monkeypatch) -> None:
    """Versions 1 and 2 have rows for the same classes, the base for fewer: two sets are read, and the first again."""
    held: list[weakref.ref[Images]] = []

    def read(*arguments, **options):
        assert not any(one() for one in held)
        images = read_images(*arguments, **options)
        held.append(weakref.ref(images))
        return images

    monkeypatch.setattr(gauge, "test_images", read)
    with Registry.open(trained_home, read_only=True) as registry:
        measure_it = Gauge(registry, "digits")
        data = list(knowledge_of(registry.model("digits"), registry.resolve("digits@1")).sources)
        for number, read_so_far in ((1, 1), (2, 1), ("base", 2), (1, 3)):
            measure_it.scores(registry.resolve(f"digits@{number}"), data)
            assert len(held) == read_so_far


def test_a_stage_of_a_long_order_is_told_by_its_number() -> None:
    assert shown_stage("L->F->L") == "L->F->L"
    assert shown_stage("->".join("LFLFLF")) == "6: F"


@pytest.mark.parametrize(("trained", "images"), [(1, 2), (4, 5), (16, 18)])
def test_a_few_images_are_few_after_the_validation_part_is_cut_off(trained: int, images: int) -> None:
    assert images_needed(trained) == images


def test_a_table_has_mean_and_spread_and_tells_what_diverged(tiny: Path) -> None:
    """H of 80 and 90: mean 85, deviation 7.07."""
    study = read_study(str(tiny))
    cell = {"split": "eight for two", "contender": "one", "order": "lf"}
    results = [
        {"cell": cell | {"seed": seed}, "error": "", "rows": [{"stage": "L->F", "H": h, "Acc_l": None}]}
        for seed, h in enumerate((80.0, 90.0))
    ]
    results.append({"cell": cell | {"contender": "two", "seed": 0}, "error": "it diverged", "rows": []})
    rows = summarise(study, results)
    assert rows[0].values["H"] == pytest.approx((85.0, 7.0710678))
    assert rows[0].values["Acc_l"] is None
    text = markdown(study, rows, 90.0)
    assert "took 2 minutes" in text
    assert "| one | L->F | - | - | - | 85.0 ± 7.1 |" in text
    assert "1 diverged" in text


def test_the_start_that_all_methods_share_stands_once(tiny: Path) -> None:
    study = read_study(str(tiny))
    rows = [{"stage": "Start", "H": None}, {"stage": "L->F", "H": 80.0}]
    results = [
        {"cell": {"split": "eight for two", "contender": c, "order": "lf", "seed": 0}, "error": "", "rows": rows}
        for c in ("one", "two")
    ]
    shown = [(r.contender, r.stage) for r in for_readers(summarise(study, results))]
    assert shown == [("base", "Start"), ("one", "L->F"), ("two", "L->F")]


def test_the_base_is_told_of_all_seeds_though_a_method_diverged_at_once(tiny: Path) -> None:
    study = read_study(str(tiny))
    cell = {"split": "eight for two", "order": "lf"}
    rows = [{"stage": "Start", "H": None}, {"stage": "L->F", "H": 80.0}]
    results = [
        {"cell": cell | {"contender": c, "seed": s}, "error": "", "rows": rows}
        for c, s in (("one", 0), ("two", 0), ("two", 1))
    ]
    results.append({"cell": cell | {"contender": "one", "seed": 1}, "error": "it diverged", "rows": []})
    base, one = for_readers(summarise(study, results))[:2]
    assert (base.contender, seeds_as_text(base), seeds_as_text(one)) == ("base", "2", "1, 1 diverged")


def test_each_base_of_a_study_and_each_data_has_a_registry_of_its_own(tiny: Path, given, digits, tmp_path) -> None:
    """Operations are kept in it: those on one base are none on another, and a base that comes again finds its own."""
    study = read_study(str(tiny))
    base = shutil.copy(CHECKPOINT, tmp_path / "other.safetensors")
    shutil.copytree(digits / "test" / "one", tmp_path / "data" / "one")
    other, elsewhere = given | {"base": str(base)}, given | {"digits": str(tmp_path / "data")}
    names = []
    for here in (given, other, elsewhere, given, other, elsewhere):
        with run._own_registry(study, here, tmp_path / "out") as registry:
            names.append(registry.folder.name)
            assert registry.model(MODEL).source == here["base"]
    assert names == ["registry-0", "registry-1", "registry-2"] * 2


@pytest.fixture
def _two_threads() -> Iterator[None]:
    with threads(2):
        yield


@pytest.mark.usefixtures("_two_threads")
def test_a_worker_has_one_thread_and_leaves_no_activations_when_it_fails(
    tiny: Path, given, tmp_path: Path, monkeypatch
) -> None:
    def fail(workshop, *_):
        assert torch.get_num_threads() == 1
        workshop.cache.mkdir()
        raise UsageError("it cannot be done")

    monkeypatch.setattr(run, "run_cell", fail)
    with pytest.raises(UsageError, match="it cannot be done"):
        run.run_study(read_study(str(tiny)), given, tmp_path / "out", 1, Silent())
    assert not list((tmp_path / "out").glob("*-cache"))
    assert torch.get_num_threads() == 2


def test_what_is_given_is_the_same_however_it_is_typed(tiny: Path, given, digits: Path, monkeypatch) -> None:
    study = read_study(str(tiny))
    monkeypatch.chdir(digits.parent)
    assert settled(study, given | {"digits": f"./{digits.name}/"}) == settled(study, given)
    with pytest.raises(UsageError, match="study tiny needs no 'digit'"):
        settled(study, {"digit": "x"})


def test_another_base_in_the_same_place_is_refused(tiny: Path, given, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"one")
    study, places = read_study(str(tiny)), given | {"base": str(base)}
    for _ in range(2):
        run.prepare(study, places, tmp_path / "out")
    base.write_bytes(b"two")
    with pytest.raises(UsageError, match=r"is not the base that the study in .* began with"):
        run.prepare(study, places, tmp_path / "out")
    folder = tmp_path / "detector"
    folder.mkdir()
    places = given | {"base": str(folder)}
    for content in ("one", "two"):
        (folder / "notes.txt").write_text(content)
        (folder / "config.json").write_text("{}")
        run.prepare(study, places, tmp_path / "out")
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(UsageError, match=r"is not the base that the study in .* began with"):
        run.prepare(study, places, tmp_path / "out")


def test_a_part_of_a_study_leaves_the_rest_in_its_files(tiny: Path, given, tmp_path: Path, invoke) -> None:
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    study = read_study(str(tiny))
    for cell in cells_of(study, settled(study, given)):
        done = {"cell": cell.told(), "rows": [], "error": "it diverged", "seconds": 1.0}
        (results / f"{cell.key}.json").write_text(json.dumps(done))
    uses = [part for item in given.items() for part in ("--use", "=".join(item))]
    ran = invoke(None, "study", tiny, *uses, "--table", "--seeds", "0", "-o", tmp_path / "out", "--cluster", "local")
    assert ran.code == 0, ran.err
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert len(stored) == len(list(results.iterdir())) > len(cells_of(study, given)) / len(study.seeds)


def test_a_table_of_nothing_is_told(tiny: Path, given, tmp_path: Path, invoke) -> None:
    uses = [part for item in given.items() for part in ("--use", "=".join(item))]
    ran = invoke(None, "study", tiny, *uses, "--table", "-o", tmp_path / "out")
    assert (ran.code, "no cell of this study is done" in ran.err) == (3, True)


def test_what_stops_a_worker_stops_the_study_with_its_code(tiny: Path, given, tmp_path: Path, invoke) -> None:
    uses = [part for item in (given | {"base": "x"}).items() for part in ("--use", "=".join(item))]
    ran = invoke(None, "study", tiny, *uses, "--workers", 2, "-o", tmp_path / "out", "-q")
    assert (ran.code, "x" in ran.err) == (3, True), ran.err


def test_data_that_is_not_there_is_told_before_anything_is_left_behind(tiny: Path, given, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        run.run_study(read_study(str(tiny)), given | {"digits": "nowhere"}, tmp_path / "out", 2, Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("method: imprint-only", "method: imprint", r"tiny\.yaml: contenders\[1\]\.learn: no method 'imprint'"),
        ("gs-lora, set: {steps", "gs-lora, set: {stepz", r"contenders\[0\]\.forget: no hyper-parameter 'stepz'"),
        ("    learn: {method: imprint-only}\n", "", r"contenders\[1\]: two does not say how to learn"),
        ("seeds: [0, 1]", "seeds: [1, 1]", r"tiny\.yaml: seeds: a seed stands there twice"),
    ],
)
def test_what_is_wrong_in_a_study_is_told_with_its_place(tiny: Path, right: str, wrong: str, said: str) -> None:
    assert right in TINY
    tiny.write_text(TINY.replace(right, wrong, 1))
    with pytest.raises(UsageError, match=said) if "no method" not in said else pytest.raises(NotFoundError, match=said):
        read_study(str(tiny))


def test_a_worker_that_dies_is_told(tiny: Path, given, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_child", os._exit)  # its first argument is no number: it dies
    with pytest.raises(TeamError, match="a worker died, and 4 cells are left") as raised:
        run.run_study(read_study(str(tiny)), given, tmp_path / "out", 2, Silent())
    assert raised.value.exit_code == 18


def test_a_study_completes_a_registry_whose_making_was_cut_short(tiny: Path, given, tmp_path: Path) -> None:
    study, folder = read_study(str(tiny)), tmp_path / "out"
    (folder / "registry-0" / "tmp").mkdir(parents=True)
    with run._own_registry(study, given, folder) as registry:
        assert registry.folder == folder / "registry-0"


def test_a_contender_may_be_called_anything(tiny: Path, given, tmp_path: Path) -> None:
    with Registry.create(tmp_path / "registry") as registry:
        add_model(registry, MODEL, str(CHECKPOINT), Description(), given["digits"])
        assert Workshop(registry, "s")._new_branch(0, "-0.1-") in registry.branches(MODEL)


@pytest.mark.parametrize("label", ["../escaped", "ROOT/escaped", "a/b", "..", ".hidden"])
def test_a_subset_is_not_written_outside_its_folder(tmp_path: Path, label: str) -> None:
    label = label.replace("ROOT", str(tmp_path))
    samples = tuple(Sample(f"{i}.png", label, "train") for i in range(4))
    source = Source("list.csv", samples, lambda _: b"an image")
    with pytest.raises(UnsafeInputError, match="cannot be the name of a folder"):
        write_subset(source, [label], 2, 0, tmp_path / "subsets")
    assert [f.name for f in tmp_path.rglob("*")] == ["subsets"]


def test_a_class_with_too_few_images_for_its_row_is_told(tmp_path: Path) -> None:
    source = Source("list.csv", tuple(Sample(f"{i}.png", "a", "train") for i in range(4)), lambda _: b"an image")
    with pytest.raises(DataError, match=r"class 'a' of list\.csv has 4 training images, fewer than the 5"):
        write_subset(source, ["a"], 5, 0, tmp_path / "subsets")


def test_a_subset_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def read(_):
        raise DataError("it is gone")

    source = Source("list.csv", tuple(Sample(f"{i}.png", "a", "train") for i in range(4)), read)
    with pytest.raises(DataError):
        write_subset(source, ["a"], 2, 0, tmp_path / "subsets")
    assert not list((tmp_path / "subsets").iterdir())


def test_a_study_runs_shares_what_orders_begin_with_and_is_summed_up(tiny: Path, given, tmp_path, invoke) -> None:
    tiny.write_text(TINY.replace("[lf]", "[l, lf]"))
    use = [text for name, path in given.items() for text in ("--use", f"{name}={path}")]
    line = (
        "study",
        tiny,
        *use,
        "-o",
        tmp_path / "out",
        "--workers",
        "1",
        "--seeds",
        "0",
        "--only",
        "two",
        "--json",
        "-q",
    )
    ran = invoke(None, *line)
    assert ran.code == 0, ran.err
    assert [row["stage"] for row in ran.json] == ["Start", "L", "L->F"]
    assert ran.json[0]["values"]["Acc_r"][0] > 90
    with Registry.open(tmp_path / "out" / "registry-0", read_only=True) as registry:
        assert [v.kind for v in registry.versions(MODEL)] == ["base", "learn", "forget"]
    assert ran.json[2]["values"]["Acc_l"][0] > 0
    cells = [f.stat().st_mtime_ns for f in (tmp_path / "out" / "results").glob("*.json")]
    assert invoke(None, *line).json == ran.json
    assert [f.stat().st_mtime_ns for f in (tmp_path / "out" / "results").glob("*.json")] == cells
    assert "| two | L->F |" in (tmp_path / "out" / "table.md").read_text()
    with (tmp_path / "out" / "table.csv").open() as file:
        assert [r["stage"] for r in csv.DictReader(file)] == ["Start", "L", "L->F"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_that_is_killed_goes_on_without_redoing_or_losing_a_cell(tiny: Path, given, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    use = [text for name, path in given.items() for text in ("--use", f"{name}={path}")]
    line = [sys.executable, "-c", "from kswapctl.cli import main; main()", "study", str(tiny), *use, "-o", str(folder)]
    child = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((folder / "results").glob("*.json")):
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()  # with no chance to tidy up, or to stop its workers
    child.wait()
    for name in ("registry-0", "registry-1"):
        while not free(folder / "claims", name):  # they end by themselves
            time.sleep(0.02)
    before = {f.name: f.stat().st_mtime_ns for f in (folder / "results").glob("*.json")}
    assert 1 <= len(before) < 4
    subprocess.run(line, check=True, capture_output=True)
    after = {f.name: f.stat().st_mtime_ns for f in (folder / "results").glob("*.json")}
    assert len(after) == 4
    assert before.items() <= after.items()


LESSONS = "    lessons: [{data: digits, classes: [eight]}, {data: digits, classes: [nine]}]\n"
SMALL = {
    "few": "    images_per_class: 1\n",
    "missing": "    missing: 3\n",
    "tasks": "    draw: {classes: 1, tasks: 3}\n",
    "lessons": "    draw: {classes: 1, tasks: 2}\n",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "order"), [("few", "f"), ("missing", "f"), ("tasks", "fff"), ("lessons", "lflf")])
def test_a_small_version_of_each_protocol_runs(tiny: Path, given, tmp_path: Path, invoke, kind, order) -> None:
    """The swap's own small version is the test above."""
    text = (
        TINY.replace("[lf]", f"[{order}]").replace("Acc_l, Acc_f", "Acc_o, Acc_f").replace("    forget: [[two]]\n", "")
    )
    if kind == "lessons":
        text = text.replace("    learn_data: digits\n    learn: [eight]\n", LESSONS)
    tiny.write_text(text + SMALL[kind] + ("" if "draw" in SMALL[kind] else "    forget: [[two]]\n"))
    use = [text for name, path in given.items() for text in ("--use", f"{name}={path}")]
    ran = invoke(None, "study", tiny, *use, "-o", tmp_path / "out", "--workers", "1", "--seeds", "1", "--json", "-q")
    assert ran.code == 0, ran.err
    assert {row["stage"] for row in ran.json} >= {"Start", "->".join(order.upper())}
    assert all(row["values"]["Acc_r"] for row in ran.json)


@pytest.mark.slow
def test_workers_may_be_jobs(tiny: Path, given, tmp_path: Path, invoke) -> None:
    use = [word for name, place in given.items() for word in ("--use", f"{name}={place}")]
    options = (*use, "-o", tmp_path / "study", "--cluster", "local", "--workers", "2", "--seeds", "0", "--json")
    ran = invoke(None, "study", tiny, *options)
    assert ran.code == 0, ran.err
    assert {row["contender"] for row in ran.json} == {"one", "two"}
    assert "submitted" in ran.err


def test_a_cluster_that_is_not_here_is_told(tiny: Path, given, tmp_path: Path, invoke) -> None:
    use = [word for name, place in given.items() for word in ("--use", f"{name}={place}")]
    ran = invoke(None, "study", tiny, *use, "-o", tmp_path / "study", "--cluster", "moon")
    assert ran.code == 2
    assert "'moon'" in ran.err


def test_new_values_of_a_method_make_new_cells(tiny: Path, given, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release does that changes a default."""
    from kswapctl.methods import finetune

    before = {cell.key for cell in cells_of(read_study(str(tiny)), given)}
    assert before == {cell.key for cell in cells_of(read_study(str(tiny)), given)}
    monkeypatch.setattr(finetune.Learn, "presets", {"default": {"lr": 0.5}})
    after = cells_of(read_study(str(tiny)), given)
    assert {cell.contender.name for cell in after if cell.key in before} == {"two"}  # which learns otherwise


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"number": 7, "met": true, "costs": {}}}', '{"a": 1}'])
def test_notes_that_tell_nothing_only_cost_time(given, tmp_path: Path, text: str) -> None:
    with Registry.create(tmp_path / "registry") as registry:
        add_model(registry, MODEL, str(CHECKPOINT), Description(), given["digits"])
        (tmp_path / "registry-done.json").write_text(text)
        assert Workshop(registry, "s").done == {}


def test_seeds_of_nobody_s_plan_are_in_the_tables(tiny: Path, given, tmp_path: Path, invoke) -> None:
    use = [text for name, path in given.items() for text in ("--use", f"{name}={path}")]
    line = ("study", tiny, *use, "-o", tmp_path / "out", "--workers", "1", "--only", "one", "--quiet")
    assert invoke(None, *line, "--seeds", "7").code == 0
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["cell"]["seed"] for cell in told["cells"]] == [7]
    assert (tmp_path / "out" / "table.md").is_file()
    (tmp_path / "out" / "results.json").unlink()
    assert invoke(None, *line, "--table").code == 3  # of its own seeds none is done
    assert invoke(None, *line, "--seeds", "0").code == 0
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted(cell["cell"]["seed"] for cell in told["cells"]) == [0, 7]
