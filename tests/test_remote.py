"""Push and pull: a folder, another fsspec place and a Hub on loopback give back the same versions, or an error."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def empty(tmp_path: Path, invoke: Any) -> Path:
    assert invoke(tmp_path / "empty", "init").code == 0
    return tmp_path / "empty"


def known(home: Path, ref: str = "digits") -> list[Any]:
    from kswap_registry import Registry

    with Registry.open(home, read_only=True) as registry:
        stack = registry.stack(registry.resolve(ref))
        return [(v.kind, v.state, v.adapter, v.weights, v.fingerprint, v.files) for v in stack]


def logits(home: Path, ref: str = "digits") -> Any:
    import torch
    from kswap_registry import Registry

    from kswapctl.operations.versions import load_version

    with Registry.open(home, read_only=True) as registry:
        composed = load_version(registry, registry.resolve(ref))
    with torch.no_grad():
        return composed.network()(torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16))


@pytest.mark.parametrize("kind", ["folder", "memory", "hub"])
def test_pulled_elsewhere_it_is_the_same_version(home, run, empty, invoke, hub, tmp_path, kind):
    place = {"folder": tmp_path / "place", "memory": "memory://place", "hub": "hf-hub:me/digits"}[kind]
    pushed = run("push", "digits", place, "--with-base", "--json")
    assert pushed.code == 0, pushed.err
    pulled = invoke(empty, "pull", pushed.json["place"], "digits", "--json")
    assert (pulled.code, pulled.json["added"]) == (0, 2), pulled.err
    assert known(empty) == known(home)
    assert (logits(empty) == logits(home)).all()
    assert invoke(empty, "doctor", "--deep", "--json").json["findings"] == []
    assert invoke(empty, "pull", place, "digits", "--json").json["added"] == 0
    event = run("log", "--json").json[-1]
    assert (event["action"], event["payload"]["to"]) == ("push", pushed.json["place"])


def test_a_page_that_is_no_shared_model_s_is_not_replaced(run, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    ran = run("push", "digits", tmp_path / "own")
    assert (ran.code, "would be lost" in ran.err) == (2, True)
    assert [f.name for f in (tmp_path / "own").iterdir()] == ["README.md"]
    assert (tmp_path / "own" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("line", [("push", "digits"), ("pull",)])
def test_a_place_without_a_name_is_refused(run, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    ran = run(*line, "", *(("x",) if line == ("pull",) else ()))
    assert (ran.code, "the place has no name" in ran.err) == (2, True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_where_a_folder_should_be_is_the_disk_s_fault(run, tmp_path, name):
    (tmp_path / "file").touch()
    ran = run("push", "digits", tmp_path / name)
    assert (ran.code, "cannot be used" in ran.err) == (16, True)


def test_the_card_tells_the_sets_apart(home, run, tmp_path):
    from huggingface_hub import ModelCard
    from kswap_registry import Registry

    assert run("push", "digits", tmp_path / "place").code == 0
    results = ModelCard.load(tmp_path / "place" / "README.md").data.eval_results
    with Registry.open(home, read_only=True) as registry:
        metrics = registry.resolve("digits").metrics
    assert {r.dataset_name: r.metric_value for r in results} == {
        f"validation part, {name} set": metrics[name] for name in ("retain", "forget")
    }


def test_the_hub_gets_adapters_a_card_and_a_tag_a_version(run, hub):
    from huggingface_hub import ModelCard

    first = run("push", "digits@1", "hf-hub:me/digits", "--json").json["place"]
    second = run("push", "digits", "hf-hub:me/digits", "--json").json["place"]
    repository = hub.repositories["me/digits"]
    assert {first, second} == {f"hf-hub:me/digits@{tag}" for tag in repository.tags}
    assert len(repository.commits) == 3
    files = hub.head("me/digits")
    assert sum(name.endswith("/adapter_config.json") for name in files) == 2
    assert "base/model.safetensors" not in files
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "image-classification")
    assert {result.dataset_name.split(", ")[1] for result in card.data.eval_results} >= {"retain set"}
    assert "three" in card.text
    assert "kswapctl pull hf-hub:me/digits digits\n" in card.text
    assert '"me/digits", subfolder=' in card.text
    assert run("push", "digits", "hf-hub:me/digits").code == 0  # once more changes nothing
    assert len(repository.tags) == 2


def test_a_tag_brings_back_its_version(fresh, run, invoke, hub):
    first = run("push", "digits@1", "hf-hub:me/digits", "--json").json["place"]
    run("push", "digits", "hf-hub:me/digits")
    assert invoke(fresh, "pull", first, "digits", "--json").json["added"] == 1
    assert invoke(fresh, "pull", "hf-hub:me/digits", "digits", "--json").json["added"] == 1
    assert invoke(fresh, "pull", "hf-hub:me/digits@v9", "digits").code == 3


def test_who_pushes_second_is_told(run, hub):
    run("push", "digits@1", "hf-hub:me/digits")
    before = hub.head("me/digits")
    hub.race = True
    ran = run("push", "digits", "hf-hub:me/digits")
    assert ran.code == 11
    assert "meanwhile" in ran.err
    assert hub.head("me/digits") == {**before, "other": b"work"}


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_another_line_is_not_replaced(run, hub, tmp_path, kind):
    place = {"folder": tmp_path / "place", "hub": "hf-hub:me/digits"}[kind]
    assert run("push", "digits", place).code == 0
    ran = run("push", "digits@1", place)
    assert ran.code == 11
    assert "not below" in ran.err


def test_two_who_push_to_a_folder_do_not_both_win(home, run, tmp_path, monkeypatch):
    from kswapctl.operations import places

    run("push", "digits@1", tmp_path / "place")
    page = (tmp_path / "place" / "README.md").read_bytes()
    assert f"kswapctl pull {tmp_path / 'place'} digits\n" in page.decode()

    def another(point: str) -> None:
        if point == "push.after_files":
            (tmp_path / "place" / "manifest.json").write_bytes(listed)

    assert run("push", "digits", tmp_path / "other").code == 0
    listed = (tmp_path / "other" / "manifest.json").read_bytes()
    shutil.copytree(tmp_path / "other" / "adapters", tmp_path / "place" / "adapters", dirs_exist_ok=True)
    monkeypatch.setattr(places, "point", another)
    assert run("push", "digits", tmp_path / "place").code == 11
    assert (tmp_path / "place" / "README.md").read_bytes() == page


def test_a_byte_changed_in_any_file_is_found_and_named(run, fresh, invoke, state, tmp_path):
    place = tmp_path / "place"
    assert run("push", "digits", place, "--with-base").code == 0
    before = state(fresh)
    paths = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "README.md"]
    assert len(paths) == 6
    for path in paths:
        content = path.read_bytes()
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        ran = invoke(fresh, "pull", place, "digits")
        assert ran.code in (12, 13, 15), path
        assert path.name in ran.err or path.name == "manifest.json", ran.err
        path.write_bytes(content[:-1])
        assert invoke(fresh, "pull", place, "digits").code in (12, 15), path
        path.write_bytes(content)
    assert state(fresh) == before
    assert invoke(fresh, "pull", place, "digits").code == 0


def test_a_byte_changed_on_the_hub_is_found_and_named(run, fresh, invoke, hub):
    run("push", "digits", "hf-hub:me/digits")
    files = hub.head("me/digits")
    for name in [name for name in files if name.startswith("adapters/")]:
        content = files[name]
        for forged in (content[:-1] + b"\0", content + b"\0", content[:-1]):
            files[name] = forged
            ran = invoke(fresh, "pull", "hf-hub:me/digits", "digits")
            assert (ran.code, name in ran.err) == (12, True), ran.err
        files[name] = content
    del files[name]
    assert invoke(fresh, "pull", "hf-hub:me/digits", "digits").code == 12


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_in_a_folder_is_refused(run, fresh, invoke, tmp_path, kind):
    place = tmp_path / "place"
    run("push", "digits", place)
    path = next(place.rglob("adapter_config.json"))
    path = path if kind == "file" else path.parent
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    ran = invoke(fresh, "pull", place, "digits")
    assert ran.code == 15
    assert "adapter_config.json" in ran.err


@pytest.mark.parametrize(
    "place", ["/nowhere/at/all", "nosuch://x", "hf-hub:", "hf-hub:x", "hf-hub:../x", "hf-hub:no/body"]
)
def test_a_place_that_is_none_says_so(fresh, invoke, hub, place):
    ran = invoke(fresh, "pull", place, "digits")
    assert ran.code in (2, 3)
    assert ran.err.startswith("error:")


def test_a_place_that_cannot_be_written_says_so(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ran = run("push", "digits", tmp_path / "file" / "place")
    assert ran.code in (3, 16), ran


def test_a_hub_that_is_away_says_so(run, fresh, invoke, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ran = invoke(fresh, "pull", "hf-hub:me/digits", "digits")
    assert ran.code == 3, ran
    assert os.environ["HF_ENDPOINT"]


def test_a_class_name_is_seen_as_it_is_and_is_no_markup():
    from kswapctl.export.card import _names

    assert _names(["x,y", "it's [bold]|", "ünï", "a\nb"]) == '"x,y", it&#39;s &#91;bold&#93;&#124;, ünï, a?b'.replace(
        '"', "&#34;"
    )


def test_plain_peft_loads_what_was_pushed(run, hub, home, tmp_path):
    """One adapter on the weights below it is the version above."""
    import torch
    from kswap_registry import Registry
    from peft import PeftModel

    from kswapctl.operations.versions import load_version

    run("push", "digits", tmp_path / "place")
    folder = sorted((tmp_path / "place" / "adapters").iterdir())[1]
    with Registry.open(home, read_only=True) as registry:
        below, above = (load_version(registry, registry.resolve(ref)).network() for ref in ("digits@1", "digits"))
    inputs = torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)
    with torch.no_grad():
        loaded: Any = PeftModel.from_pretrained(below, str(folder))  # type: ignore[arg-type]
        assert torch.allclose(loaded(inputs), above(inputs), atol=1e-5)
