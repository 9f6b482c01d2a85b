"""Versions from another registry: all of them arrive, or none."""

from pathlib import Path

import pytest
from kswap_registry import AlreadyExists, BadName, HeadMoved, Registry, UnknownModel, doctor, verify_history
from kswap_registry.adoption import Arrival, Landing, adopt
from kswap_registry.digests import stack_fingerprint
from kswap_registry.writing import Change, Checkpoint


def arrivals(checkpoint: Path, *adapters: str) -> list[Arrival]:
    changes = [Change("learn", "gs-lora", {"rank": 8}, {}, adapter, "weights", {"retain": 1.0}) for adapter in adapters]
    return [Arrival(change, {"adapter": checkpoint}, {"from": "a friend", "version": "f@3"}) for change in changes]


def test_a_stack_arrives_above_the_head(faces: Registry, checkpoint: Path) -> None:
    top = adopt(faces, Landing("faces"), arrivals(checkpoint, "one", "two"))
    assert (top.ref, top.parent, faces.resolve("faces").number) == ("faces@2", 1, 2)
    base = faces.model("faces").fingerprint
    assert top.fingerprint == stack_fingerprint(stack_fingerprint(base, "one"), "two")
    event = faces.events()[-1]
    assert (event.action, event.number, event.previous) == ("import", 2, 1)
    assert event.payload["origin"] == {"from": "a friend", "version": "f@3"}
    assert doctor.check(faces) == []
    assert verify_history(faces).first_bad is None


def test_a_model_arrives_with_its_stack(registry: Registry, checkpoint: Path) -> None:
    model = Checkpoint("signs", "t", "s", {}, ["a"], "f")
    landing = Landing("signs", checkpoint=model, files={"model": checkpoint})
    assert adopt(registry, landing, arrivals(checkpoint, "one")).ref == "signs@1"
    assert adopt(registry, Landing("signs", 1), []).ref == "signs@1"
    assert doctor.check(registry) == []
    with pytest.raises(AlreadyExists):
        adopt(registry, landing, arrivals(checkpoint, "two"))


def test_a_line_of_its_own(faces: Registry, checkpoint: Path) -> None:
    adopt(faces, Landing("faces"), arrivals(checkpoint, "one"))
    assert adopt(faces, Landing("faces", branch="theirs"), arrivals(checkpoint, "two")).ref == "faces@2"
    assert faces.branches("faces") == {"main": 1, "theirs": 2}
    assert adopt(faces, Landing("faces", 2, "theirs"), arrivals(checkpoint, "three")).parent == 2
    assert doctor.check(faces) == []


def test_nothing_arrives_where_the_head_has_moved(faces: Registry, checkpoint: Path) -> None:
    adopt(faces, Landing("faces"), arrivals(checkpoint, "one"))
    with pytest.raises(HeadMoved):
        adopt(faces, Landing("faces"), arrivals(checkpoint, "two", "three"))
    assert [version.number for version in faces.versions("faces")] == [0, 1]


@pytest.mark.parametrize(("landing", "error"), [
    (Landing("../x"), BadName), (Landing("faces", branch="-rf"), BadName), (Landing("other"), UnknownModel),
])  # fmt: skip
def test_bad_places_are_refused(faces: Registry, checkpoint: Path, landing: Landing, error: type[Exception]) -> None:
    with pytest.raises(error):
        adopt(faces, landing, arrivals(checkpoint, "one"))
