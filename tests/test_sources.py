"""Where images come from: folders, manifests, saved datasets; and how they are cut into parts."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kswapctl.data.sets import changed_part, count, first_with, retained_part
from kswapctl.data.sources import Sample, Source, open_source
from kswapctl.data.splits import by_class, share, take, training_part
from kswapctl.data.splits import test_part as held_back
from kswapctl.errors import DataError, NotFoundError, UnsafeInputError
from kswapctl.spec import Rehearsal

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write images, each of its own colour, at the given places."""

    def write(*places: str, root: str = "data") -> Path:
        for index, place in enumerate(places):
            file = tmp_path / root / place
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (index % 256, index // 256, 7)).save(file)
        return tmp_path / root

    return write


@pytest.fixture
def flat(make: Make) -> Source:
    """A folder without parts: 40 cats, 20 dogs, 1 emu."""
    places = [f"{c}/{i:02}.png" for c, n in (("cat", 40), ("dog", 20), ("emu", 1)) for i in range(n)]
    return open_source(str(make(*places)))


def plan(samples: list[Sample]) -> set[str]:
    return {s.key for s in samples}


def test_a_folder_with_parts_is_read_by_part(make: Make) -> None:
    source = open_source(str(make("train/cat/a.png", "train/dog/b.png", "test/cat/c.png")))
    assert {(s.key, s.label, s.split) for s in source.samples} == {
        ("train/cat/a.png", "cat", "train"),
        ("train/dog/b.png", "dog", "train"),
        ("test/cat/c.png", "cat", "test"),
    }


@pytest.mark.parametrize("name", ["val", "valid", "validation", "testing"])
def test_a_validation_part_is_the_test_part_where_there_is_no_other(make: Make, name: str) -> None:
    source = open_source(str(make("train/cat/a.png", f"{name}/cat/b.png")))
    assert plan(held_back(source, ["cat"])) == {f"{name}/cat/b.png"}


def test_a_validation_part_beside_a_test_part_is_left_alone(make: Make) -> None:
    source = open_source(str(make("train/cat/a.png", "val/cat/b.png", "test/cat/c.png")))
    assert plan(list(source.samples)) == {"train/cat/a.png", "test/cat/c.png"}


def test_nested_folders_and_hidden_ones(make: Make) -> None:
    root = make("cat/deep/er/a.png", "cat/b.JPG", ".cache/x.png")
    (root / "README.txt").write_text("not an image")
    (root / "cat" / "notes.txt").write_text("not an image")
    source = open_source(str(root))
    assert {(s.key, s.label) for s in source.samples} == {("cat/deep/er/a.png", "cat"), ("cat/b.JPG", "cat")}


def test_reading_gives_the_file_s_bytes(make: Make) -> None:
    root = make("cat/a.png")
    source = open_source(str(root))
    assert source.read(source.samples[0]) == (root / "cat/a.png").read_bytes()


def test_an_empty_class_folder_is_named(make: Make) -> None:
    root = make("train/cat/a.png")
    (root / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*/dog holds no image"):
        open_source(str(root))


@pytest.mark.parametrize("name", [" cat", "line\nbreak"])
def test_a_class_name_that_no_option_could_hold_is_refused(make: Make, name: str) -> None:
    with pytest.raises(DataError, match="class name"):
        open_source(str(make(f"{name}/a.png")))


def test_a_class_folder_that_is_not_utf_8_is_refused(make: Make) -> None:
    root = make("cat/a.png")
    os.rename(root / "cat", os.fsencode(root) + b"/\xff\xfe")
    with pytest.raises(DataError, match="not named in UTF-8"):
        open_source(str(root))


def test_files_that_are_not_utf_8_are_read(make: Make) -> None:
    root = make("cat/a.png", "cat/b.png")
    os.rename(root / "cat/a.png", os.fsencode(root) + b"/cat/\xff.png")
    source = open_source(str(root))
    assert len(training_part(source, ["cat"])) + len(held_back(source, ["cat"])) == 2
    assert all(source.read(s) for s in source.samples)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "hf:"])
def test_data_that_is_not_there_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError):
        open_source(name)


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor"):
        open_source(str(tmp_path / "a.txt"))


ROWS = [
    {"path": "x/1.png", "label": "cat", "split": "train"},
    {"path": "x/2.png", "label": "dog", "split": "val"},
    {"path": "x/3.png", "label": "cat", "split": ""},
]


def manifest(folder: Path, rows: list[dict[str, str]], kind: str) -> Path:
    file = folder / f"list.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, sorted({k for r in rows for k in r}))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n")
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_lists_paths_beside_it(make: Make, kind: str) -> None:
    root = make("x/1.png", "x/2.png", "x/3.png")
    source = open_source(str(manifest(root, ROWS, kind)))
    assert [(s.key, s.label, s.split) for s in source.samples] == [
        ("x/1.png", "cat", "train"),
        ("x/2.png", "dog", "test"),
        ("x/3.png", "cat", ""),
    ]
    assert source.read(source.samples[1]) == (root / "x/2.png").read_bytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_may_begin_with_a_mark_of_its_encoding(make: Make, kind: str) -> None:
    file = manifest(make("x/1.png", "x/2.png", "x/3.png"), ROWS, kind)
    file.write_text(file.read_text(), encoding="utf-8-sig")  # as spreadsheets save it
    assert len(open_source(str(file)).samples) == len(ROWS)


def test_a_manifest_s_validation_part_beside_a_test_part_is_left_alone(make: Make) -> None:
    parts = ("train", "val", "testing")
    rows = [{"path": f"x/{part}.png", "label": "cat", "split": part} for part in parts]
    source = open_source(str(manifest(make(*(f"x/{part}.png" for part in parts)), rows, "csv")))
    assert [s.key for s in source.samples] == ["x/train.png", "x/testing.png"]


def test_a_label_may_be_the_number_zero(make: Make) -> None:
    file = make("x/1.png") / "list.jsonl"
    file.write_text(json.dumps({"path": "x/1.png", "label": 0}))
    assert open_source(str(file)).classes == ("0",)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "x/1.png", "label": "cat", "split": "holdout"}, "row 2 .* unknown split 'holdout'"),
        ({"path": "x/1.png", "label": ""}, "row 2 .* no 'label'"),
        ({"label": "cat"}, "row 2 .* no 'path'"),
    ],
)
def test_a_bad_row_of_a_manifest_is_named(make: Make, row: dict[str, str], said: str, kind: str) -> None:
    root = make("x/1.png")
    with pytest.raises(DataError, match=said):
        open_source(str(manifest(root, [ROWS[0], row], kind)))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"path": "./x/1.png", "split": "test"}, "rows 1 and 2 of list.csv .* another part: 'train' and 'test'"),
        ({"path": "x/1.png", "label": "dog", "split": "train"}, "another class: 'cat' and 'dog'"),
    ],
)
def test_an_image_of_two_parts_or_two_classes_is_refused(make: Make, other: dict[str, str], said: str) -> None:
    rows = [{"path": "x/1.png", "label": "cat", "split": "train"}, {"label": "cat"} | other]
    with pytest.raises(DataError, match=said):
        open_source(str(manifest(make("x/1.png"), rows, "csv")))


def test_a_row_that_stands_twice_counts_once(make: Make) -> None:
    assert len(open_source(str(manifest(make("x/1.png"), [ROWS[0], *ROWS], "csv"))).samples) == len(ROWS)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../x/1.png", "leads out of its folder"),
        ("x/../../1.png", "leads out of its folder"),
        ("..", "leads out of its folder"),
        ("/etc/hostname", "has a whole path"),
    ],
)
def test_a_manifest_does_not_lead_out_of_its_folder(make: Make, path: str, said: str) -> None:
    with pytest.raises(UnsafeInputError, match=rf"row 2 of list\.csv {said}"):
        open_source(str(manifest(make("x/1.png"), [ROWS[0], {"path": path, "label": "cat"}], "csv")))


def test_a_file_that_a_manifest_lists_and_is_not_there_is_named(make: Make) -> None:
    source = open_source(str(manifest(make("x/1.png"), ROWS, "csv")))
    with pytest.raises(DataError, match=r"list\.csv lists x/2\.png, which does not exist"):
        source.read(source.samples[1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "lists no image"),
        ("a.csv", b"path,label\n", "lists no image"),
        ("a.jsonl", b"\n{", "line 2 of a.jsonl is no JSON"),
        ("a.jsonl", b"[1]\n", "row 1 of a.jsonl is no object"),
        ("b.jsonl", b"[" * 100_000, "line 1 of b.jsonl is no JSON"),
        ("a.csv", b"\xff\xfe\n", "is no UTF-8 text"),
        ("a.jsonl", b"\xff\xfe\n", "is no UTF-8 text"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        open_source(str(tmp_path / name))
    assert name in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("parts", [True, False])
def test_a_saved_hugging_face_dataset_is_read(make: Make, tmp_path: Path, parts: bool) -> None:
    import datasets

    root = make("x/1.png", "x/2.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": [str(root / "x/1.png"), str(root / "x/2.png")], "label": [1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    (datasets.DatasetDict(train=table, test=table) if parts else table).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    expected = ["cat", "dog"] * (2 if parts else 1)
    assert [s.label for s in source.samples] == expected
    assert {s.split for s in source.samples} == ({"train", "test"} if parts else {""})
    assert source.read(source.samples[0]) == (root / "x/1.png").read_bytes()


def test_a_row_without_an_image_is_a_bad_image(make: Make, tmp_path: Path) -> None:
    import datasets

    root = make("x/1.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": [str(root / "x/1.png"), None], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"row 1 .* has no image"):
        source.read(source.samples[1])


def test_a_saved_dataset_with_hidden_labels_is_refused(make: Make, tmp_path: Path) -> None:
    import datasets

    root = make("x/1.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": [str(root / "x/1.png")] * 3, "label": [0, -1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"2 of 3 images of a part of .*saved have no label"):
        open_source(str(tmp_path / "saved"))


def test_a_saved_dataset_without_images_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no image and label columns, only text, label"):
        open_source(str(tmp_path / "saved"))


def test_an_unknown_class_answers_with_the_nearest(flat: Source) -> None:
    with pytest.raises(NotFoundError, match="no class 'cta'") as raised:
        flat.require(["dog", "cta"])
    assert "'cat'" in raised.value.hint


def test_the_cut_of_a_folder_without_parts_is_whole_and_disjoint(flat: Source) -> None:
    train, test = training_part(flat, flat.classes), held_back(flat, flat.classes)
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(flat.samples)
    assert Counter(s.label for s in test) == {"cat": 8, "dog": 4, "emu": 1}


def test_the_cut_does_not_move_with_the_order_of_files_or_other_classes(flat: Source) -> None:
    turned = Source(flat.name, flat.samples[::-1], flat.read)
    assert plan(held_back(turned, ["cat"])) == plan(held_back(flat, ["cat"]))
    assert plan(held_back(flat, ["cat"])) == {k for k in plan(held_back(flat, flat.classes)) if k.startswith("cat")}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_seed_moves_a_test_image_into_a_training_part(flat: Source, seed: int) -> None:
    test = plan(held_back(flat, flat.classes))
    rehearsal = Rehearsal(share=1.0)
    changed = changed_part([flat], ["cat"], rehearsal, seed)
    retained, _ = retained_part([flat], ["dog"], rehearsal, seed)
    used = [s for part in (changed, retained) for chosen in (part.train, part.validation) for _, s in chosen]
    assert used
    assert not test & {s.key for samples in used for s in samples}


def test_training_and_validation_part_never_overlap(flat: Source) -> None:
    for seed in range(5):
        for part in (
            changed_part([flat], ["cat"], Rehearsal(), seed),
            retained_part([flat], ["cat", "dog"], Rehearsal(share=1.0), seed)[0],
        ):
            train, held = ({s for _, samples in chosen for s in samples} for chosen in (part.train, part.validation))
            assert held
            assert not train & held


def test_the_seed_moves_the_validation_part(flat: Source) -> None:
    parts = [plan(changed_part([flat], ["cat"], Rehearsal(), seed).validation[0][1]) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(("share_", "cats", "dogs"), [(0.1, 3, 2), (0.5, 16, 8), (0.0, 1, 1), (1.0, 29, 14)])
def test_the_rehearsal_share_is_of_each_class(flat: Source, share_: float, cats: int, dogs: int) -> None:
    """32 cats and 16 dogs may be trained on; a tenth of each is the validation part."""
    part, _ = retained_part([flat], ["cat", "dog"], Rehearsal(share=share_), 0)
    assert Counter(s.label for s in part.train[0][1]) == {"cat": cats, "dog": dogs}


def test_rehearsal_by_number_takes_that_many_of_each_class(flat: Source) -> None:
    part, _ = retained_part([flat], ["cat", "dog"], Rehearsal(per_class=5), 0)
    assert Counter(s.label for s in part.train[0][1]) == {"cat": 5, "dog": 5}


def test_classes_that_no_source_has_are_told(flat: Source) -> None:
    part, missing = retained_part([flat], ["yak", "cat", "gnu"], Rehearsal(), 0)
    assert missing == ("yak", "gnu")
    assert count(part.train) == 3


def test_a_class_is_rehearsed_from_the_first_source_that_has_it(make: Make, flat: Source) -> None:
    other = open_source(str(make(*(f"train/{c}/{i}.png" for c in ("dog", "fox") for i in range(9)), root="other")))
    part, missing = retained_part([flat, other], ["dog", "fox"], Rehearsal(), 0)
    assert [(source.name, {s.label for s in samples}) for source, samples in part.train] == [
        (flat.name, {"dog"}),
        (other.name, {"fox"}),
    ]
    assert not missing


def test_a_class_with_one_training_image_is_refused(make: Make) -> None:
    source = open_source(str(make("train/cat/a.png", "train/dog/b.png", "train/dog/c.png")))
    with pytest.raises(DataError, match=r"'cat' has too few training images in .*: 1"):
        changed_part([source], ["cat"], Rehearsal(), 0)


def test_a_class_is_not_taken_from_a_source_that_only_tests_it(make: Make) -> None:
    old = open_source(str(make(*(f"train/cat/{i}.png" for i in range(9)), root="old")))
    new = open_source(str(make("train/fox/a.png", "train/fox/b.png", "test/cat/c.png", root="new")))
    part, missing = retained_part([new, old], ["cat"], Rehearsal(), 0)
    assert [source.name for source, _ in part.train] == [old.name]
    assert not missing
    assert first_with([new], ["cat"]) == ([], ("cat",))


def test_a_class_to_retain_with_one_training_image_is_told(make: Make) -> None:
    source = open_source(str(make("train/cat/a.png", "train/dog/b.png", "train/dog/c.png")))
    part, missing = retained_part([source], ["cat", "dog"], Rehearsal(), 0)
    assert missing == ("cat",)
    assert {s.label for s in part.train[0][1]} == {"dog"}


def test_a_share_of_nothing_is_empty_and_of_something_is_not(flat: Source) -> None:
    assert share(flat.samples, 0.0, 0) == []
    assert Counter(s.label for s in share(flat.samples, 0.01, 0)) == {"cat": 1, "dog": 1, "emu": 1}


def test_taking_more_than_there_is_takes_all(flat: Source) -> None:
    assert len(take(flat.samples, {"cat": 99, "dog": 1, "emu": 1}, 0)) == 42
    assert list(by_class(flat.samples)) == ["cat", "dog", "emu"]
