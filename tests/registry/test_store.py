import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from kswap_registry import (
    AlreadyExists,
    BadValue,
    HeadMoved,
    NoRegistry,
    ReadOnly,
    Registry,
    UnknownModel,
    UnknownVersion,
    Version,
    tombstones,
)

Learn = Callable[..., Version]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_new_registry_is_empty(registry: Registry) -> None:
    assert registry.models() == []
    assert [event.action for event in registry.events()] == ["init"]


def test_creating_a_registry_twice_changes_nothing(faces: Registry) -> None:
    before = (faces.folder / "registry.db").read_bytes()
    with Registry.create(faces.folder) as again:
        assert again.models() == faces.models()
    assert (faces.folder / "registry.db").read_bytes() == before


def test_opening_a_folder_without_a_registry_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoRegistry) as caught:
        Registry.open(tmp_path / "nothing")
    assert caught.value.exit_code == 10
    assert not (tmp_path / "nothing").exists()


def test_a_model_keeps_what_it_was_registered_with(faces: Registry) -> None:
    model = faces.model("faces")
    assert (model.task, model.source, model.classes) == ("classification", "timm:tiny", ["ann", "bob"])
    assert model.spec == {"architecture": "tiny", "depth": 2}
    assert model.files == {"model.safetensors": sha256("weights of the base")}
    assert (model.fingerprint, model.head) == ("base-fingerprint", 0)
    assert faces.models() == [model]


def test_the_base_is_a_version_without_parent(faces: Registry) -> None:
    base = faces.resolve("faces")
    assert (base.ref, base.parent, base.kind, base.size) == ("faces@base", None, "base", 19)
    assert base.fingerprint == base.weights == "base-fingerprint"
    assert faces.stack(base) == []


def test_a_version_keeps_what_it_was_committed_with(faces: Registry, learn: Learn) -> None:
    version = learn("cat", accuracy=0.5, forgotten=1)
    assert version == faces.resolve("faces@1") == faces.versions("faces")[1]
    assert (version.ref, version.parent, version.kind, version.method) == ("faces@1", 0, "learn", "gs-lora")
    assert version.state == {"classes": ["ann", "bob", "cat"]}
    assert version.metrics == {"accuracy": 0.5, "forgotten": 1.0}
    assert (version.files, version.size) == ({"adapter.safetensors": sha256("cat")}, 3)
    assert version.fingerprint == sha256("base-fingerprint" + "adapter-cat")
    assert version.note == "learned cat"


def test_numbers_are_never_used_again(faces: Registry, learn: Learn) -> None:
    learn("one"), learn("two")
    faces.move_head("faces", 1)
    third = learn("three")
    assert (third.number, third.parent) == (3, 1)
    assert [version.ref for version in faces.stack(third)] == ["faces@1", "faces@3"]


def test_the_head_moves_back_and_forth_and_each_move_is_recorded(faces: Registry, learn: Learn) -> None:
    learn("one"), learn("two")
    assert faces.move_head("faces", 0, command="kswapctl rollback", note="too much").ref == "faces@base"
    assert faces.move_head("faces", 2, action="forward").ref == "faces@2"
    back, forth = faces.events("faces", limit=2)
    assert (back.action, back.previous, back.number, back.payload) == (
        "rollback",
        2,
        0,
        {"branch": "main", "note": "too much"},
    )
    assert (forth.action, forth.previous, forth.number) == ("forward", 0, 2)


def test_a_move_from_where_the_head_no_longer_is_is_told(faces: Registry, learn: Learn) -> None:
    learn("one"), learn("two")
    with pytest.raises(HeadMoved, match="faces@1 to faces@2"):
        faces.move_head("faces", 0, expected=1)
    assert faces.resolve("faces").number == 2
    assert faces.move_head("faces", 0, expected=2).number == 0


def test_a_move_to_where_the_head_is_records_nothing(faces: Registry) -> None:
    before = faces.events()
    assert faces.move_head("faces", 0).number == 0
    assert faces.events() == before


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("faces", 3),
        ("faces@head", 3),
        ("faces@base", 0),
        ("faces@0", 0),
        ("faces@2", 2),
        ("faces@-1", 2),
        ("faces@-3", 0),
        ("faces@-0", 3),
        ("faces@best", 1),
    ],
)
def test_references(faces: Registry, learn: Learn, reference: str, number: int) -> None:
    learn("one"), learn("two"), learn("three")
    faces.tag("faces", 1, "best")
    assert faces.resolve(reference).number == number


@pytest.mark.parametrize("selector", ["9", "-4", "none", "", "9" * 30, "-", "--1", "²", "1.0", "@", "1@2"])
def test_an_unknown_version_names_the_known_ones(faces: Registry, learn: Learn, selector: str) -> None:
    learn("one"), learn("two"), learn("three")
    faces.tag("faces", 1, "best")
    with pytest.raises(UnknownVersion) as caught:
        faces.resolve(f"faces@{selector}")
    assert caught.value.message == f"no version {f'faces@{selector}'!r}"
    assert caught.value.hint == "known: faces@base, faces@1 .. faces@3; tags best"
    assert caught.value.exit_code == 3


def test_an_unknown_model_names_the_nearest(faces: Registry) -> None:
    with pytest.raises(UnknownModel) as caught:
        faces.resolve("face@1")
    assert caught.value.hint == "did you mean 'faces'? known: faces"


def test_an_unknown_model_in_an_empty_registry_says_how_to_add_one(registry: Registry) -> None:
    with pytest.raises(UnknownModel) as caught:
        registry.model("faces")
    assert "kswapctl add" in caught.value.hint


def test_a_registry_stays_usable_after_a_change_of_directory(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Registry.create(Path("here")) as registry:
        monkeypatch.chdir("/")
        registry.add_model("a", task="t", source="s", spec={}, classes=[], fingerprint="f", files={"m": checkpoint})
        assert registry.folder == tmp_path / "here"


def test_a_model_name_is_taken_once(faces: Registry, checkpoint: Path) -> None:
    with pytest.raises(AlreadyExists):
        faces.add_model(
            "faces", task="t", source="s", spec={}, classes=[], fingerprint="f", files={"model": checkpoint}
        )


def test_a_tag_stands_until_it_is_moved_by_force(faces: Registry, learn: Learn) -> None:
    learn("one")
    faces.tag("faces", 1, "good")
    faces.tag("faces", 1, "good")
    with pytest.raises(AlreadyExists):
        faces.tag("faces", 0, "good")
    faces.tag("faces", 0, "good", force=True)
    assert faces.tags("faces") == {"good": 0}
    assert faces.resolve("faces@base").tags == ["good"]


def test_tagging_a_version_that_is_not_there_is_refused(faces: Registry) -> None:
    with pytest.raises(UnknownVersion):
        faces.tag("faces", 7, "good")
    with pytest.raises(UnknownVersion):
        faces.move_head("faces", 7)
    with pytest.raises(UnknownVersion):
        faces.record("faces", "export", {}, number=7)


def test_an_entry_without_a_version(faces: Registry) -> None:
    event = faces.record("faces", "export", {"file": "faces.onnx"}, number=0, command="kswapctl export")
    assert faces.events()[-1] == event
    assert (event.action, event.number, event.payload) == ("export", 0, {"file": "faces.onnx"})


def test_events_of_one_model_and_the_newest_ones(faces: Registry, learn: Learn) -> None:
    learn("one"), learn("two")
    assert [event.action for event in faces.events("faces")] == ["add", "learn", "learn"]
    assert [event.seq for event in faces.events(limit=2)] == [3, 4]
    assert [version.number for version in faces.versions("faces", limit=2)] == [1, 2]


def test_a_commitment_needs_the_key_of_this_registry(faces: Registry, tmp_path: Path) -> None:
    again = Registry.open(faces.folder)
    other = Registry.create(tmp_path / "other")
    assert faces.commitment(b"a photo") == again.commitment(b"a photo")
    assert faces.commitment(b"a photo") != other.commitment(b"a photo")
    again.close()
    other.close()


def test_reading_works_read_only_and_writing_does_not(faces: Registry) -> None:
    with Registry.open(faces.folder, read_only=True) as registry:
        assert registry.models() == faces.models()
        with pytest.raises(ReadOnly) as caught:
            registry.move_head("faces", 0)
        assert caught.value.exit_code == 16
        with pytest.raises(ReadOnly):
            registry.record("faces", "eval", {})


def test_a_head_that_moved_meanwhile_is_not_overwritten(faces: Registry, learn: Learn) -> None:
    first = learn("one")
    with faces.operation("faces", kind="forget", method="gs-lora", spec={}) as operation:
        faces.move_head("faces", 0)
        with pytest.raises(HeadMoved) as caught:
            operation.commit({}, state={}, adapter="a", weights="w", metrics={})
    assert caught.value.exit_code == 11
    assert "from faces@1 to faces@base" in caught.value.message
    assert [version.number for version in faces.versions("faces")] == [0, first.number]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_refused(faces: Registry, learn: Learn, value: float) -> None:
    with pytest.raises(BadValue):
        learn("one", accuracy=value)
    assert len(faces.versions("faces")) == 1


def test_a_version_in_the_place_of_a_model_is_told_apart(faces: Registry) -> None:
    with pytest.raises(UnknownModel) as caught:
        faces.versions("faces@2")
    assert "'faces@2' is a version: name its model, 'faces'" in caught.value.hint


def test_missing_files_are_named(faces: Registry, learn: Learn) -> None:
    made = learn("one")
    assert tombstones.missing(faces, made) == {}
    faces.store.path(made.files["adapter.safetensors"]).unlink()
    assert tombstones.missing(faces, made) == {"adapter.safetensors": "missing"}
