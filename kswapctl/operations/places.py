"""Where models are shared: a folder or fsspec URL, or a repository of the Hugging Face Hub.

A place holds the manifest and the files it lists. Files are named by what they hold, and the manifest comes last, so
what a place says it has is always whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol

from kswapctl.errors import IntegrityError, KswapError, NotFoundError, UnsafeInputError, UsageError
from kswapctl.export import card
from kswapctl.export import manifest as listing
from kswapctl.export.manifest import Listed, Manifest
from kswapctl.operations.points import point

HUB = "hf-hub:"
"""What names a repository of the Hub begins with, as in timm: ``hf-hub:org/name@tag``."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CHUNK = 2**20


class MovedError(KswapError):
    """Somebody else pushed to the place meanwhile, or another line of the model."""

    exit_code = 11
    kind = "remote-moved"


class Place(Protocol):
    """Somewhere to push to and pull from."""

    def manifest(self) -> Manifest | None:
        """What is there now; None where nothing is."""

    def fetch(self, name: str, listed: Listed, target: Path) -> None:
        """Copy one file to ``target``; bytes that are not those listed are an error that names it."""

    def publish(self, manifest: Manifest, files: Mapping[str, Path], message: str) -> str:
        """Put it there, unless the place moved since it was looked at; returns where it is found."""


def open_place(name: str, public: bool = False) -> Place:
    """The place that ``name`` means."""
    if not name.strip():
        raise UsageError("the place has no name", "name a folder, or hf-hub:org/name")
    return HubPlace(name.removeprefix(HUB), public) if name.startswith(HUB) else FolderPlace(name)


class FolderPlace:
    """A folder, here or wherever fsspec reaches."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self._files, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"{url} is no folder this can write to: {error}", "name a folder, or hf-hub:org/name"
            ) from error
        self._url = url
        self._seen = b""

    def manifest(self) -> Manifest | None:
        """What is there now."""
        try:
            with self._open(listing.NAME) as file:
                self._seen = file.read(listing.LARGEST + 1)
        except FileNotFoundError:
            return None
        return listing.load(self._seen)

    def fetch(self, name: str, listed: Listed, target: Path) -> None:
        """Copy one file to ``target``."""
        try:
            with self._open(name) as file:
                copy_checked(file, name, listed, target)
        except FileNotFoundError:
            raise IntegrityError(f"{name} is listed, but is not there", f"push it to {self._url} again") from None

    def publish(self, manifest: Manifest, files: Mapping[str, Path], message: str) -> str:
        """Files first, each under a temporary name; then the manifest, and the page that describes it.

        A page that is no shared model's is somebody's own, and is not replaced.
        """
        if not self._seen and self._files.exists(f"{self._root}/{card.NAME}"):
            raise UsageError(
                f"{self._url} holds no shared model, and has a {card.NAME} that would be lost",
                "push to a new or empty folder",
            )
        for name, listed in manifest.members().items():
            if not self._has(name, listed):
                self._put(name, files[name].read_bytes() if listed.size < _CHUNK else files[name])
        point("push.after_files")
        before = self._seen
        self.manifest()
        if self._seen != before:
            raise MovedError(f"somebody else pushed to {self._url} meanwhile", "pull, then push again")
        self._put(listing.NAME, manifest.dump())
        point("push.after_list")
        self._put(card.NAME, card.write_card(manifest, self._url).encode())
        return self._url

    def _open(self, name: str) -> IO[bytes]:
        path = f"{self._root}/{name}"
        if "file" in self._protocols() and Path(path).exists():
            for part in (Path(path), *Path(path).parents[: name.count("/")]):
                if part.is_symlink() or stat.S_IFMT(part.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                    raise UnsafeInputError(f"{name} is a link, or no regular file", "it was not opened")
        opened: IO[bytes] = self._files.open(path, "rb")
        return opened

    def _has(self, name: str, listed: Listed) -> bool:
        try:
            with self._open(name) as file:
                return _digest(file, listed.size) == listed.sha256
        except FileNotFoundError:
            return False

    def _put(self, name: str, content: bytes | Path) -> None:
        path = f"{self._root}/{name}"
        temporary = f"{path}.{os.urandom(8).hex()}.part"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            if isinstance(content, Path):
                self._files.put_file(str(content), temporary)
            else:
                self._files.pipe_file(temporary, content)
            if "file" in self._protocols():
                os.replace(temporary, path)  # fsspec's own move is not one step
            else:
                self._files.mv(temporary, path)
        finally:
            if self._files.exists(temporary):
                self._files.rm(temporary)

    def _protocols(self) -> tuple[str, ...]:
        named: str | tuple[str, ...] = self._files.protocol
        return (named,) if isinstance(named, str) else tuple(named)


class HubPlace:
    """A repository of the Hugging Face Hub; a version is a commit with a tag."""

    def __init__(self, name: str, public: bool) -> None:
        from huggingface_hub import HfApi

        self._repository, _, self._revision = name.partition("@")
        if not _REPOSITORY.fullmatch(self._repository):
            raise UsageError(f"{name!r} names no repository", "write hf-hub:org/name or hf-hub:org/name@tag")
        self._public = public
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self._commit = ""

    def manifest(self) -> Manifest | None:
        """What the revision holds; it stays that one from here on."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = self._ask(self._api.repo_info, self._repository, revision=self._revision or None)
            self._commit = info.sha or ""
            with self._open(listing.NAME, listing.LARGEST) as file:
                return listing.load(file.read(listing.LARGEST + 1))
        except RevisionNotFoundError as error:
            raise NotFoundError(f"{self._repository} has no {self._revision!r}", "look at its tags") from error
        except (RepositoryNotFoundError, EntryNotFoundError):
            return None

    def fetch(self, name: str, listed: Listed, target: Path) -> None:
        """Copy one file of the commit to ``target``."""
        from huggingface_hub.errors import EntryNotFoundError

        try:
            with self._open(name, listed.size) as file:
                copy_checked(file, name, listed, target)
        except EntryNotFoundError:
            raise IntegrityError(f"{name} is listed, but is not there", "push it again") from None

    def publish(self, manifest: Manifest, files: Mapping[str, Path], message: str) -> str:
        """One commit on top of the one that was looked at, then the version's tag."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        self._ask(self._api.create_repo, self._repository, private=not self._public, exist_ok=True)
        contents: dict[str, bytes | str] = {name: str(files[name]) for name in manifest.members()}
        contents |= {
            listing.NAME: manifest.dump(),
            card.NAME: card.write_card(manifest, HUB + self._repository).encode(),
        }
        adds = [CommitOperationAdd(name, content) for name, content in contents.items()]
        point("push.after_files")
        try:
            parent = self._commit or None
            made = self._ask(
                self._api.create_commit, self._repository, adds, commit_message=message, parent_commit=parent
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
            raise MovedError(
                f"somebody else pushed to {self._repository} meanwhile", "pull, then push again"
            ) from error
        point("push.after_list")
        tag = f"v{len(manifest.steps)}-{manifest.top[:12]}"
        self._ask(self._api.create_tag, self._repository, tag=tag, revision=made.oid, exist_ok=True)
        return f"{HUB}{self._repository}@{tag}"

    def _open(self, name: str, limit: int) -> IO[bytes]:
        """A file of the commit; one larger than ``limit`` bytes is not fetched."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        url = hf_hub_url(self._repository, name, revision=self._commit, endpoint=self._api.endpoint)
        size = self._ask(get_hf_file_metadata, url, endpoint=self._api.endpoint).size
        if size is not None and size > limit:
            raise IntegrityError(f"{name} has {size} bytes, more than the {limit} that it may have", "push it again")
        with TemporaryDirectory() as folder:
            path = self._ask(
                hf_hub_download,
                self._repository,
                name,
                revision=self._commit,
                local_dir=folder,
                endpoint=self._api.endpoint,
            )
            return open(path, "rb")  # it stays readable when its folder is gone

    def _ask(self, call: Any, *arguments: Any, **options: Any) -> Any:
        from huggingface_hub.errors import (  # type: ignore[attr-defined]
            HfHubHTTPError,
            HTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )

        try:
            return call(*arguments, **options)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 404
            if status in (404, 409, 412):  # the caller knows what they mean
                raise
            if status in (401, 403):
                hint = "log in: hf auth login"
                raise NotFoundError(f"{self._repository} is not there, or not yours", hint) from error
            raise NotFoundError(f"the Hub answered {status} for {self._repository}", "try again later") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, HTTPError) as error:
            raise NotFoundError(f"the Hub cannot be reached: {str(error)[:120]}", "check the network") from error


def copy_checked(source: IO[bytes], name: str, listed: Listed, target: Path) -> None:
    """Copy a file, once; more, fewer or other bytes than listed are an :class:`IntegrityError`."""
    digest, left = hashlib.sha256(), listed.size
    with target.open("wb") as copy:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            copy.write(chunk)
    if left or digest.hexdigest() != listed.sha256:
        raise IntegrityError(f"{name} is not what the manifest lists: it was changed", "push it again")


def _digest(file: IO[bytes], limit: int) -> str:
    return hashlib.sha256(file.read(limit + 1)).hexdigest()
