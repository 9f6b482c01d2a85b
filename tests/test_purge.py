"""``kswapctl purge``: what knew the forgotten classes goes, on purpose only, and the history tells of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run


@pytest.fixture(scope="module")
def merged_home(trained_home: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Run) -> Path:
    """The head of digits is a model of its own, clean; not to be changed."""
    folder = tmp_path_factory.mktemp("merged")
    home = Path(shutil.copytree(trained_home, folder / "registry"))
    for line in (
        ("merge", "digits", "-o", folder / "clean.safetensors"),
        ("add", "clean", folder / "clean.safetensors", "--data", digits),
    ):
        assert invoke(home, *line).code == 0
    return home


@pytest.fixture
def merged(merged_home: Path, tmp_path: Path, invoke: Run) -> Run:
    """Run in a copy of it."""
    home = Path(shutil.copytree(merged_home, tmp_path / "registry"))
    return lambda *arguments: invoke(home, *arguments)


def history(run: Run) -> Any:
    return run("log", "--json").json


def test_a_purge_first_only_tells(merged: Run) -> None:
    before = history(merged)
    ran = merged("purge", "digits")
    assert ran.code == 0
    assert "would be removed for good: --confirm digits" in ran.out
    told = merged("purge", "digits", "--json").json
    assert (told["removed"], told["forgotten"], told["replaced"]) == (False, ["three"], {"main": "clean"})
    assert len(told["files"]) == 5
    assert history(merged) == before
    assert merged("eval", "digits@1", "--json").code == 0


def test_a_purged_model_is_gone_and_its_history_stays(merged: Run) -> None:
    kept = merged("log", "--head", "--json").json
    assert merged("purge", "digits", "--confirm", "digits").code == 0
    ran = merged("eval", "digits@1", "--json")
    assert (ran.code, ran.json["kind"]) == (3, "purged")
    assert ran.json["message"].startswith("digits was purged at ")
    assert ran.json["hint"] == "what its heads were merged to is here: clean"
    assert merged("rollback", "digits", "--to", "base").code == 3  # nothing is there to go back to
    assert "purged" in merged("show", "digits@1").out
    assert "purged" in merged("show", "digits").out
    assert merged("log", "--verify", "--kept", kept["head"]).code == 0
    assert [e["action"] for e in history(merged)][-1:] == ["purge"]
    assert merged("list", "digits", "--json").code == 0
    assert merged("eval", "clean", "--json").code == 0
    assert merged("doctor", "--deep", "--json").json["sound"] is True


def test_the_residue_of_the_replacement_says_purged(merged_home: Path, tmp_path: Path) -> None:
    from kswap_registry import Registry, purge

    from kswapctl.operations.residue import find_remains, knew_before_merging

    with Registry.open(Path(shutil.copytree(merged_home, tmp_path / "registry"))) as registry:
        knew = knew_before_merging(registry, registry.resolve("clean"), ("three",))
        assert knew == "digits@1"
        assert find_remains(registry, knew, ("three",)).level == "SUPPRESSED"
        purge.purge(registry, "digits", confirm="digits")
        assert find_remains(registry, knew, ("three",)).level == "PURGED"


def test_another_model_of_the_same_base_is_what_still_knows(merged: Run, tmp_path: Path) -> None:
    from kswap_registry import Registry

    from kswapctl.demo.digits import CHECKPOINT
    from kswapctl.operations.residue import find_remains

    assert merged("add", "twin", CHECKPOINT).code == 0
    assert merged("merge", "twin@base", "-o", tmp_path / "copy.safetensors").code == 0
    assert "merge of twin@base: copy.safetensors" in merged("purge", "digits", "--json").json["elsewhere"]
    assert merged("purge", "digits", "--confirm", "digits").code == 0
    with Registry.open(tmp_path / "registry") as registry:
        left = find_remains(registry, "digits@1", ("three",))
    assert (left.level, {what.partition(":")[0] for what in left.held}) == ("SUPPRESSED", {"digits@base", "twin@base"})
    assert left.shipped == ("merge of twin@base",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("digits", "--confirm", "digit"), "'digit' is not the model's name"),
        (("clean",), "has forgotten nothing"),
    ],
)
def test_what_is_no_purge_is_refused(merged: Run, line: tuple[str, ...], words: str) -> None:
    before = history(merged)
    ran = merged("purge", *line)
    assert ran.code == 2
    assert words in ran.err
    assert history(merged) == before


def test_a_branch_that_still_knows_holds_the_files(merged: Run) -> None:
    assert merged("branch", "digits@1", "old").code == 0
    ran = merged("purge", "digits", "--confirm", "digits")
    assert ran.code == 2
    assert "branch old of digits stands at digits@1, which has forgotten nothing" in ran.err
    assert merged("branch", "digits", "old", "--to", "2").code == 0
    assert merged("purge", "digits", "--confirm", "digits").code == 0


def test_without_a_replacement_nothing_goes(run: Run) -> None:
    ran = run("purge", "digits", "--confirm", "digits")
    assert ran.code == 2
    assert "digits@2 needs the files" in ran.err
    assert run("eval", "digits", "--json").code == 0


def test_what_was_written_before_is_named(merged: Run, tmp_path: Path) -> None:
    assert merged("merge", "digits@1", "-o", tmp_path / "knows.safetensors").code == 0
    assert merged("bundle", "digits", "-o", tmp_path / "all.kswap").code == 0
    assert merged("purge", "digits", "--json").json["elsewhere"] == [
        "merge of digits@1: knows.safetensors",
        "bundle of digits@2: all.kswap",
    ]


def test_a_base_that_went_along_and_what_another_branch_knew_are_named(
    merged: Run, digits: Path, tmp_path: Path
) -> None:
    assert merged("bundle", "digits", "--with-base", "-o", tmp_path / "all.kswap").code == 0
    assert merged("branch", "digits@1", "old").code == 0
    line = ("learn", "digits@old", "--data", digits, "--classes", "eight", "--again", "--preset", "fewest", "-q")
    ran = merged(*line)
    assert ran.code == 0, ran.err
    assert merged("merge", "digits@3", "-o", tmp_path / "knows.safetensors").code == 0
    assert merged("branch", "digits", "old", "--to", "2").code == 0
    shipped = ["bundle of digits@2: all.kswap", "merge of digits@3: knows.safetensors"]
    assert merged("purge", "digits", "--json").json["elsewhere"] == shipped
    told = merged("audit", "digits@2", "--tier", "quick", "--json").json["residue"]["shipped"]
    assert told == ["bundle of digits@2", "merge of digits@3"]  # a record tells nobody what files are called
