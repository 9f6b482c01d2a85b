"""Bundles: what goes out comes in again, bit for bit; whatever else comes is refused before it is registered."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kswapctl.errors import IntegrityError, KswapError, UnsafeInputError, WrongBaseError
from kswapctl.export import bundle as bundles
from kswapctl.export import manifest as listing
from kswapctl.export.bundle import open_bundle
from kswapctl.models.foreign import check_config


@pytest.fixture(scope="session")
def shared(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of the trained registry: with.kswap (base inside), without.kswap, only.kswap (the second adapter)."""
    from kswap_registry import Registry

    from kswapctl.operations.share import Wish, bundle

    folder = tmp_path_factory.mktemp("shared")
    home = Path(shutil.copytree(trained_home, folder / "registry"))
    with Registry.open(home) as registry:
        version = registry.resolve("digits")
        for name, with_base, only in (("with", True, False), ("without", False, False), ("only", False, True)):
            output = folder / f"{name}.kswap"
            bundle(registry, version, Wish(output, with_base, only), "test")
    return folder


@pytest.fixture
def empty(tmp_path: Path, invoke: Any) -> Path:
    """A registry that holds nothing."""
    assert invoke(tmp_path / "empty", "init").code == 0
    return tmp_path / "empty"


def known(home: Path, ref: str = "digits") -> list[Any]:
    """What must be the same in both registries."""
    from kswap_registry import Registry

    with Registry.open(home, read_only=True) as registry:
        stack = registry.stack(registry.resolve(ref))
        return [
            (v.kind, v.method, v.spec, v.state, v.adapter, v.weights, v.fingerprint, v.files, v.metrics) for v in stack
        ]


def logits(home: Path, ref: str = "digits") -> Any:
    import torch
    from kswap_registry import Registry

    from kswapctl.operations.versions import load_version

    with Registry.open(home, read_only=True) as registry:
        composed = load_version(registry, registry.resolve(ref))
    with torch.no_grad():
        inputs = torch.linspace(-1, 1, 4 * 16 * 16).reshape(4, 1, 16, 16)
        return composed.network()(inputs.expand(4, *composed.spec.preprocessing.input_size))


def test_a_bundle_with_its_base_makes_the_same_model_elsewhere(shared, empty, trained_home, invoke, state):
    ran = invoke(empty, "import", shared / "with.kswap", "--json")
    assert (ran.code, ran.json["version"], ran.json["added"]) == (0, "digits@2", 2)
    assert known(empty) == known(trained_home)
    assert (logits(empty) == logits(trained_home)).all()
    assert invoke(empty, "show", "digits@2").code == 0
    assert invoke(empty, "doctor", "--deep", "--json").json["findings"] == []


def test_a_bundle_without_its_base_needs_one_with_the_same_tensors(shared, empty, fresh, trained_home, invoke):
    refused = invoke(empty, "import", shared / "without.kswap")
    assert refused.code == 13
    assert "--with-base" in refused.err
    assert invoke(fresh, "import", shared / "without.kswap").code == 0
    assert known(fresh) == known(trained_home)
    assert invoke(fresh, "import", shared / "without.kswap", "--as", "other").code == 0
    assert known(fresh, "other") == known(trained_home)


def test_the_same_version_gives_the_same_bundle(shared, run, tmp_path):
    ran = run("bundle", "digits", "-o", tmp_path / "again.kswap", "--with-base", "--json")
    assert (tmp_path / "again.kswap").read_bytes() == (shared / "with.kswap").read_bytes()
    assert ran.json["sha256"] == hashlib.sha256((shared / "with.kswap").read_bytes()).hexdigest()
    assert zipfile.ZipFile(shared / "with.kswap").testzip() is None  # any unzip reads it
    assert run("bundle", "digits", "-o", tmp_path / "again.kswap").code == 2  # it is there already


def test_importing_twice_changes_nothing(shared, fresh, invoke, state):
    invoke(fresh, "import", shared / "without.kswap")
    before = state(fresh)
    ran = invoke(fresh, "import", shared / "without.kswap", "--json")
    assert (ran.code, ran.json["added"]) == (0, 0)
    assert state(fresh) == before


def test_importing_again_puts_back_what_was_lost(shared, fresh, invoke):
    from kswap_registry import Registry

    invoke(fresh, "import", shared / "with.kswap")
    with Registry.open(fresh) as registry:
        lost = [registry.blob(d) for ref in ("digits@base", "digits@2") for d in registry.resolve(ref).files.values()]
    for path in lost:
        path.unlink()
    assert invoke(fresh, "doctor").code == 12
    ran = invoke(fresh, "import", shared / "with.kswap")
    assert (ran.code, "put back the files of digits@base" in ran.err, "digits@1" in ran.err) == (0, True, False)
    assert invoke(fresh, "doctor").code == 0
    assert invoke(fresh, "import", shared / "with.kswap", "--branch", "night").code == 0
    with Registry.open(fresh) as registry:
        assert registry.branches("digits") == {"main": 2, "night": 2}


def test_one_adapter_needs_the_stack_below_it(shared, fresh, home, trained_home, invoke):
    assert invoke(fresh, "import", shared / "only.kswap").code == 13
    assert invoke(home, "bundle", "digits@1", "-o", fresh.parent / "first.kswap").code == 0
    assert invoke(fresh, "import", fresh.parent / "first.kswap").code == 0
    assert invoke(fresh, "import", shared / "only.kswap").code == 0
    assert known(fresh) == known(trained_home)


def test_a_line_that_went_on_is_not_replaced(shared, home, invoke):
    """The head is not where the bundle's line left: the versions go to a branch, or nowhere."""
    from kswap_registry import Registry

    with Registry.open(home) as registry:
        first = registry.resolve("digits@1")
        files = {name: registry.blob(digest) for name, digest in first.files.items()}
        registry.move_head("digits", 0)
        with registry.operation("digits", kind="learn", method="other", spec=first.spec) as operation:
            operation.commit(files, state=first.state, adapter="0" * 64, weights=first.weights, metrics={})
        assert registry.resolve("digits").number == 3
    reached = shutil.copytree(home, home.parent / "other")
    assert invoke(reached, "import", shared / "without.kswap", "--json").json["version"] == "digits@2"  # known already


def test_two_lines_meet_on_a_branch(shared, fresh, invoke):
    from kswap_registry import Registry

    with Registry.open(fresh) as registry:
        model = registry.model("digits")
        files = {"adapter_config.json": registry.blob(model.files["model.safetensors"])}
        with registry.operation("digits", kind="learn", method="other", spec={}) as operation:
            operation.commit(files, state={}, adapter="0" * 64, weights="w", metrics={})
    refused = invoke(fresh, "import", shared / "without.kswap")
    assert refused.code == 11
    assert "it goes on from digits@base, but the head is at digits@1" in refused.err
    assert "--branch" in refused.err
    assert invoke(fresh, "import", shared / "without.kswap", "--branch", "theirs").code == 0
    assert invoke(fresh, "branch", "digits", "--json").json == {"main": "digits@1", "theirs": "digits@3"}
    assert invoke(fresh, "import", shared / "without.kswap", "--branch", "-rf").code in (0, 2)


def test_a_bundle_for_another_base_is_refused(shared, fresh, invoke):
    from kswap_registry import Registry

    with Registry.open(fresh) as registry:
        model = registry.model("digits")
        path = registry.blob(model.files["model.safetensors"])
        registry.add_model(
            "other",
            task=model.task,
            source="",
            spec=model.spec,
            classes=model.classes,
            fingerprint="0" * 64,
            files={"model.safetensors": path},
        )
    assert invoke(fresh, "import", shared / "with.kswap", "--as", "other").code == 13


def test_a_base_of_the_same_weights_that_is_fed_otherwise_is_another(shared, fresh, trained_home, invoke, state):
    from kswap_registry import Registry

    with Registry.open(fresh) as registry:
        model = registry.model("digits")
        registry.add_model(
            "darker",
            task=model.task,
            source="",
            spec=model.spec | {"preprocessing": model.spec["preprocessing"] | {"mean": [0.9, 0.9, 0.9]}},
            classes=model.classes,
            fingerprint=model.fingerprint,
            files={"model.safetensors": registry.blob(model.files["model.safetensors"])},
        )
    before = state(fresh)
    refused = invoke(fresh, "import", shared / "without.kswap", "--as", "darker")
    assert refused.code == 13
    assert "--as NAME" in refused.err
    assert state(fresh) == before
    assert invoke(fresh, "import", shared / "without.kswap", "--json").json["version"] == "digits@2"
    assert known(fresh) == known(trained_home)


def test_only_the_file_that_was_told_of_is_taken(shared, empty, invoke):
    digest = hashlib.sha256((shared / "with.kswap").read_bytes()).hexdigest()
    assert invoke(empty, "import", shared / "with.kswap", "--sha256", "0" * 64).code == 12
    assert invoke(empty, "import", shared / "with.kswap", "--sha256", digest).code == 0


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two pairs of a private and a public key."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    from cryptography.hazmat.primitives import serialization as form

    made = []
    for name in ("ours", "theirs"):
        key, folder = ec.generate_private_key(ec.SECP256R1()), tmp_path_factory.mktemp(name)
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (folder / "private.pem").write_bytes(private)
        (folder / "public.pem").write_bytes(public)
        made.append((folder / "private.pem", folder / "public.pem"))
    return made


@pytest.fixture
def signed(pairs, run, tmp_path) -> Path:
    """A bundle signed by the first key."""
    ran = run("bundle", "digits", "-o", tmp_path / "signed.kswap", "--key", pairs[0][0], "--json")
    assert (ran.code, ran.json["signed"]) == (0, True), ran.err
    return tmp_path / "signed.kswap"


def test_a_signed_bundle_is_taken_with_and_without_the_key(signed, pairs, fresh, invoke, trained_home):
    assert zipfile.ZipFile(signed).testzip() is None
    assert invoke(fresh, "import", signed, "--key", pairs[0][1]).code == 0
    assert known(fresh) == known(trained_home)
    assert invoke(fresh, "import", signed, "--as", "other").code == 0


def test_another_signer_or_none_is_refused(signed, shared, pairs, fresh, invoke, state):
    before = state(fresh)
    for path, words in ((signed, "no signature is by public.pem"), (shared / "without.kswap", "not signed")):
        ran = invoke(fresh, "import", path, "--key", pairs[1][1])
        assert (ran.code, words in ran.err) == (12, True), ran.err
    assert invoke(fresh, "import", signed, "--key", pairs[0][0]).code == 4  # that is the private one
    assert state(fresh) == before


@pytest.mark.parametrize(
    "kind", ["of another bundle", "of a record", "edited", "no JSON", "another form", "second last"]
)
def test_a_signature_of_something_else_is_refused(signed, shared, pairs, fresh, tmp_path, invoke, state, kind):
    content, other = members(signed), members(shared / "without.kswap")
    value = json.loads(content["manifest.sig.json"])
    if kind == "of another bundle":
        content |= {"manifest.json": members(shared / "only.kswap")["manifest.json"]}
        for name in set(other) - set(members(shared / "only.kswap")):
            content.pop(name, None)
    elif kind == "of a record":
        from kswapctl.export.statement import make_statement, seal

        value = seal(make_statement({}, {}), pairs[0][0])
    elif kind == "edited":
        value["payload"] = value["payload"][:-8] + "AAAA" + value["payload"][-4:]
    elif kind == "another form":
        value["more"] = 1
    content["manifest.sig.json"] = b"{" if kind == "no JSON" else json.dumps(value).encode()
    if kind == "second last":
        content["manifest.sig.json"] = content.pop("manifest.sig.json")
    for arguments in ((), ("--key", pairs[0][1])):
        before = state(fresh)
        ran = invoke(fresh, "import", pack(tmp_path / "x.kswap", content), *arguments)
        assert ran.code in (12, 13, 15), ran
        assert state(fresh) == before


@pytest.mark.parametrize("arguments", [("digits@base", "-o", "x"), ("digits@9", "-o", "x"), ("other", "-o", "x")])
def test_what_cannot_be_bundled_says_so(run, tmp_path, arguments):
    ref, option, name = arguments
    assert run("bundle", ref, option, tmp_path / name).code in (2, 3)
    assert not (tmp_path / name).exists()


# What strangers send


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(path: Path, content: dict[str, bytes], change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A bundle whose structure and digests are right, so that only what ``change`` did can be wrong."""
    value = json.loads(content[listing.NAME])
    if change:
        change(value)
    places = dict(content)
    for step in value["steps"]:
        for name, listed in step["files"].items():
            for place, data in places.items():
                if place.endswith(name) and place.split("/")[1][:4] == f"{value['steps'].index(step) + 1:04}":
                    listed |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    for name, listed in value["base"]["files"].items():
        listed |= {"sha256": hashlib.sha256(places[f"base/{name}"]).hexdigest(), "size": len(places[f"base/{name}"])}
    value.pop("digest")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    value["digest"] = hashlib.sha256(text.encode()).hexdigest()
    manifest = json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    renamed = {listing.NAME: manifest, **{n: d for n, d in places.items() if n != listing.NAME}}
    return pack(path, renamed)


def pack(path: Path, content: dict[str, bytes]) -> Path:
    """Members in the exact form of a bundle, whatever they hold."""
    import zlib

    found: list[bundles.Member] = []
    with path.open("wb") as file:
        for name, data in content.items():
            bundles._append(file, found, name, zlib.crc32(data), len(data))
            file.write(data)
        file.write(bundles._directory(found, file.tell()))
    return path


def refused(home: Path, path: Path, code: int | tuple[int, ...], invoke: Any, state: Any) -> str:
    before = state(home)
    ran = invoke(home, "import", path)
    assert ran.code in (code if isinstance(code, tuple) else (code,)), ran
    assert state(home) == before
    assert not list((home / "tmp").iterdir())
    return str(ran.err)


def zipped(path: Path, change: Callable[[zipfile.ZipFile], None], **options: Any) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **options) as archive:
        warnings.simplefilter("ignore")
        change(archive)
    return path


def with_name(name: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(name, b"evil")


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("base/model.safetensors")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("manifest.json", b"{}")
    archive.writestr("manifest.json", b"{}")


def nested(archive: zipfile.ZipFile) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as other:
        other.writestr("manifest.json", b"{}")
    archive.writestr("inner.zip", inner.getvalue())


BAD_NAMES = ("../x", "/etc/x", "C:\\x", "..\\x", "a\\b", "%2e%2e/x", "x\0y", "Manifest.json")
TRICKS: dict[str, Callable[[zipfile.ZipFile], None]] = {
    **{f"name {name!r}": with_name(name) for name in BAD_NAMES},
    "symbolic link": link,
    "two of one name": twice,
    "a zip inside": nested,
    "empty": lambda archive: None,
    "comment": lambda archive: setattr(archive, "comment", b"x"),
    "twenty thousand members": lambda archive: [archive.writestr(f"{i}", b"") for i in range(20_000)] and None,
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_zip_with_tricks_is_refused(empty, tmp_path, invoke, state, trick):
    refused(empty, zipped(tmp_path / "evil.kswap", TRICKS[trick]), 15, invoke, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "evil.kswap"]


@pytest.mark.parametrize("kind", ["encrypted", "lying directory", "sizes beyond any file"])
def test_a_directory_that_says_otherwise_is_refused(shared, fresh, tmp_path, invoke, state, kind):
    content = bytearray((shared / "without.kswap").read_bytes())
    central = content.find(b"PK\1\2")
    if kind == "encrypted":
        content[6] |= 1
        content[central + 8] |= 1
    elif kind == "lying directory":
        content[central + 24 : central + 28] = (2**31).to_bytes(4, "little")  # the first member's size
    while kind == "sizes beyond any file" and central >= 0:
        content[central + 24 : central + 28] = bytes(4 * [255])
        central = content.find(b"PK\1\2", central + 1)
    (tmp_path / "x.kswap").write_bytes(content)
    refused(fresh, tmp_path / "x.kswap", 15, invoke, state)


def test_a_compression_bomb_costs_neither_memory_nor_time(empty, tmp_path, invoke, state):
    bomb = zipped(tmp_path / "bomb.kswap", with_name("manifest.json"), compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("manifest.json", "w") as file:
        for _ in range(100):
            file.write(bytes(2**20))
    assert bomb.stat().st_size < 2**20
    started = time.monotonic()
    with pytest.raises(UnsafeInputError):
        open_bundle(bomb)
    assert time.monotonic() - started < 0.1


@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.safetensors", "evil.SAFETENSORS", "evil.kswap"])
def test_a_pickle_under_any_name_is_not_run(empty, tmp_path, invoke, state, name):
    import pickle

    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (canary.write_text, ("ran",))

    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Evil()}))
    refused(empty, tmp_path / name, 15, invoke, state)
    assert invoke(empty, "add", "evil", tmp_path / name, "--architecture", "vit_tiny_patch16_224").code in (4, 15)
    assert invoke(empty, "add", "evil", tmp_path / name, "--allow-pickle", "--architecture", "resnet18").code in (4, 15)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["folder", "missing", "text", "half", "doubled", "tail"])
def test_what_is_no_bundle_is_refused(shared, empty, tmp_path, invoke, state, kind):
    content = (shared / "with.kswap").read_bytes()
    path = tmp_path / "x.kswap"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        made = {"text": b"hello", "half": content[: len(content) // 2], "doubled": content * 2, "tail": content + b"x"}
        path.write_bytes(made[kind])
    refused(empty, path, {"folder": 2, "missing": 3}.get(kind, 15), invoke, state)


def read_all(path: Path, target: Path) -> None:
    opened = open_bundle(path)
    for name, listed in opened.manifest.members().items():
        opened.fetch(name, listed, target)


def test_a_byte_changed_anywhere_is_found_and_named(shared, tmp_path):
    """Every 997th byte of a bundle, and the end of its structure."""
    content = bytearray((shared / "without.kswap").read_bytes())
    path = tmp_path / "x.kswap"
    named = 0
    places = [*range(0, len(content), 997), *range(len(content) - 120, len(content))]
    for at in places:
        content[at] ^= 1 << (at % 8)
        path.write_bytes(content)
        with pytest.raises((IntegrityError, UnsafeInputError, WrongBaseError)) as error:
            read_all(path, tmp_path / "out")
        named += any(name in str(error.value) for name in ("manifest", "adapter_", "directory", "end", "bundle"))
        content[at] ^= 1 << (at % 8)
    assert named == len(places)


def set_config(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.__setitem__(key, value)


CONFIGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown key": set_config("run_this", "now"),
    "regular expression": set_config("target_modules", "(a+)+$"),
    "regular expression in a list": set_config("target_modules", ["(a+)+$"]),
    "cache file": set_config("corda_config", {"cache_file": "/etc/passwd"}),
    "billion ranks": set_config("r", 10**9),
    "rank zero": set_config("r", 0),
    "rank true": set_config("r", True),
    "negative alpha": set_config("lora_alpha", -1),
    "infinite alpha": set_config("lora_alpha", 1e999),
    "huge text": set_config("base_model_name_or_path", "x" * 300_000),
    "other method": set_config("peft_type", "LOHA"),
    "dora": set_config("use_dora", True),
    "bias": set_config("bias", "all"),
    "too many heads": set_config("modules_to_save", [f"head{number}" for number in range(17)]),
    "no rank": lambda config: config.pop("r"),
    "auto mapping": set_config("auto_mapping", {"base_model_class": "os.system"}),
}


def config_of(shared: Path) -> tuple[str, dict[str, Any]]:
    content = members(shared / "without.kswap")
    name = next(n for n in content if n.endswith("adapter_config.json"))
    return name, json.loads(content[name])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_foreign_configuration_is_refused_at_once(shared, kind):
    _, config = config_of(shared)
    check_config(json.dumps(config).encode())
    CONFIGS[kind](config)
    started = time.monotonic()
    with pytest.raises(UnsafeInputError):
        check_config(json.dumps(config).encode())
    assert time.monotonic() - started < 0.1


@pytest.mark.parametrize("kind", ["unknown key", "billion ranks"])
def test_a_bundle_with_a_foreign_configuration_registers_nothing(shared, fresh, tmp_path, invoke, state, kind):
    content = members(shared / "without.kswap")
    name, config = config_of(shared)
    CONFIGS[kind](config)
    forged = forge(tmp_path / "x.kswap", {**content, name: json.dumps(config).encode()})
    refused(fresh, forged, 15, invoke, state)


def keys(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path of the manifest, its parts divided by bars."""

    def change(manifest: dict[str, Any]) -> None:
        *way, last = path.split("|")
        place: Any = manifest
        for part in way:
            place = place[int(part)] if part.isdigit() else place[part]
        place[last] = value

    return change


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], None], int]] = {
    "unknown key": (keys("run", "now"), 15),
    "unknown key in a step": (keys("steps|0|run", "now"), 15),
    "another format": (keys("format", "kswapctl-2"), 15),
    "file outside": (keys("steps|0|files|../x", {"sha256": "0" * 64, "size": 1}), 15),
    "file of PEFT's pickle": (keys("steps|0|files|adapter_model_bin", {"sha256": "0" * 64, "size": 1}), 15),
    "billion bytes of configuration": (keys("steps|0|files|x", {"sha256": "0" * 64, "size": 10**9}), 15),
    "name with a path": (keys("base|name", "../x"), 15),
    "name like an option": (keys("base|name", "-rf"), 15),
    "architecture elsewhere": (keys("base|spec|architecture", "hf-hub:evil/x"), 15),
    "architecture path": (keys("base|spec|architecture", "/tmp/x.py"), 15),
    "metric that is no number": (keys("steps|0|metrics", {"retain": "good"}), 15),
    "billion pixels": (keys("base|spec|preprocessing|input_size", [3, 10**6, 10**6]), 15),
    "stack out of order": (lambda manifest: manifest["steps"].reverse(), 13),
    "missing parent": (lambda manifest: manifest["steps"].pop(0), 13),
    "another parent": (keys("parent", "0" * 64), 13),
    "another base": (keys("base|fingerprint", "0" * 64), 13),
    "other weights": (keys("steps|1|weights", "0" * 64), 13),
    "NaN": (keys("steps|0|metrics", {"retain": float("nan")}), 15),
    "NUL": (keys("steps|0|note", "a\0b"), 15),
    "another number of classes": (keys("steps|1|state|classes", ["a"]), 13),
    "classes twice": (keys("base|classes", ["a", "a"]), 15),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_forged_manifest_registers_nothing(shared, fresh, tmp_path, invoke, state, kind):
    change, code = MANIFESTS[kind]
    refused(fresh, forge(tmp_path / "x.kswap", members(shared / "without.kswap"), change), code, invoke, state)


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_a_base_that_would_make_timm_open_a_file_is_refused(shared, empty, tmp_path, invoke, state, argument):
    change = keys(f"base|spec|arguments|{argument}", str(tmp_path / "evil.pth"))
    refused(empty, forge(tmp_path / "x.kswap", members(shared / "with.kswap"), change), 15, invoke, state)


def test_a_detector_whose_images_would_be_cut_registers_nothing(dense_changed, empty, tmp_path, invoke, state):
    made = dense_changed("bundle", "rt_detr", "--with-base", "-o", tmp_path / "made.kswap")
    assert made.code == 0, made.err
    content = members(tmp_path / "made.kswap")
    cut = forge(tmp_path / "cut.kswap", content, keys("base|spec|preprocessing|crop_mode", "center"))
    assert "boxes and masks are not cut" in refused(empty, cut, 4, invoke, state)
    assert invoke(empty, "import", forge(tmp_path / "whole.kswap", content)).code == 0


def test_a_checkpoint_whose_metadata_would_make_timm_open_a_file_is_refused(empty, tmp_path, invoke):
    import torch
    from safetensors.torch import save_file

    for stated in (
        {"architecture": "hf-hub:evil/x"},
        {"architecture": "resnet18", "arguments": {"checkpoint_path": "x"}},
    ):
        metadata = {"kswapctl": json.dumps(stated | {"classes": ["a", "b"]})}
        save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors", metadata=metadata)
        assert invoke(empty, "add", "evil", tmp_path / "x.safetensors").code == 15


def change_tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        from safetensors.torch import load, save

        tensors = load(data)
        change(tensors)
        return bytes(save(tensors, metadata={"format": "pt"}))

    return changed


def first(tensors: dict[str, Any], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], None], int]] = {
    "a tensor more": (lambda t: t.__setitem__("base_model.model.evil", next(iter(t.values())).clone()), 13),
    "a tensor less": (lambda t: t.pop(first(t, "lora_B.weight")), 13),
    "another rank": (lambda t: t.__setitem__(first(t, "lora_A.weight"), t[first(t, "lora_A.weight")][:1].clone()), 13),
    "another type": (lambda t: t.__setitem__(first(t, "lora_A.weight"), t[first(t, "lora_A.weight")].half()), 13),
    "NaN": (lambda t: t[first(t, "lora_A.weight")].fill_(float("nan")), 4),
    "other values": (lambda t: t[first(t, "lora_A.weight")].add_(1), 12),
    "name that is a path": (lambda t: t.__setitem__("base_model.model.../x", next(iter(t.values())).clone()), 15),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_forged_adapter_registers_nothing(shared, fresh, tmp_path, invoke, state, kind):
    content = members(shared / "without.kswap")
    name = next(n for n in content if n.endswith("adapter_model.safetensors"))
    change, code = TENSORS[kind]
    forged = {**content, name: change_tensors(change)(content[name])}
    refused(fresh, forge(tmp_path / "x.kswap", forged), code, invoke, state)


def test_a_base_with_other_tensors_is_refused(shared, empty, tmp_path, invoke, state):
    content = members(shared / "with.kswap")
    changed = change_tensors(lambda t: next(iter(t.values())).add_(1))(content["base/model.safetensors"])
    refused(empty, forge(tmp_path / "x.kswap", {**content, "base/model.safetensors": changed}), 12, invoke, state)


@pytest.mark.parametrize("kind", ["more", "less"])
def test_a_member_that_is_not_listed_or_not_there_is_refused(shared, fresh, tmp_path, invoke, state, kind):
    content = members(shared / "without.kswap")
    if kind == "more":
        content["adapters/0009-0123456789ab/adapter_model.bin"] = b"pickle"
    else:
        content.popitem()
    err = refused(fresh, pack(tmp_path / "x.kswap", content), 15, invoke, state)
    assert "listed" in err


def test_a_refusal_names_the_file(shared, fresh, tmp_path, invoke, state):
    content = members(shared / "without.kswap")
    name = next(n for n in content if n.endswith("adapter_model.safetensors"))
    content[name] = content[name][:-1] + b"\7"
    assert name in refused(fresh, pack(tmp_path / "x.kswap", content), 12, invoke, state)


def test_sharing_out_needs_no_torch(trained_home, tmp_path):
    import os
    import subprocess
    import sys

    home = shutil.copytree(trained_home, tmp_path / "registry")
    script = (
        "import sys; from typer.testing import CliRunner; from kswapctl.cli import app\n"
        f"result = CliRunner().invoke(app, ['bundle', 'digits', '-o', {str(tmp_path / 'x.kswap')!r}])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'timm', 'peft'} & set(sys.modules)"
    )
    environment = os.environ | {"KSWAP_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_here_has_an_exit_code():
    assert {e.exit_code for e in (IntegrityError, UnsafeInputError, WrongBaseError)} == {12, 13, 15}
    assert issubclass(UnsafeInputError, KswapError)


def test_a_manifest_in_other_words_is_refused(shared, fresh, tmp_path, invoke, state):
    content = members(shared / "without.kswap")
    value = json.loads(content[listing.NAME])
    content[listing.NAME] = json.dumps(value).encode()
    refused(fresh, pack(tmp_path / "x.kswap", content), 12, invoke, state)
