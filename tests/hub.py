"""A small Hugging Face Hub on loopback: what of its HTTP API pushing and pulling needs, in the standard library."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Commits by id, each a whole tree of files; the last one is the head."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """The commit that a revision names."""
        if revision in ("main", "HEAD"):
            return list(self.commits)[-1]
        return self.tags.get(revision, revision if revision in self.commits else None)

    def commit(self, tree: dict[str, bytes]) -> str:
        """Add a commit."""
        name = hashlib.sha1(repr((sorted(tree.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = tree
        return name


@dataclass
class Hub:
    """The server's state, open to the tests."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    race: bool = False
    """Somebody else commits just before the next commit."""

    def head(self, name: str) -> dict[str, bytes]:
        """The files of the latest commit."""
        repository = self.repositories[name]
        return repository.commits[str(repository.find("main"))]


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the Hub while the block lasts."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            return self._look("/".join(path.split("/")[2:4]), path.split("/")[4:])
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        return self._file(name, revision, file)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.state.uploads[self.path.rsplit("/", 1)[1]] = self._body()
        self._send(200, {})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self._body()
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path == "api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path.endswith("info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        name, (action, *rest) = "/".join(path.split("/")[2:4]), path.split("/")[4:]
        if name not in self.state.repositories:
            return self._missing("RepoNotFound")
        return {"preupload": self._preupload, "commit": self._commit, "tag": self._tag}[action](name, rest, body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        known = name in self.state.repositories
        if not known:
            self.state.repositories[name] = Repository()
            self.state.repositories[name].commit({".gitattributes": b""})
        self._send(409 if known else 200, {"url": f"{self.state.endpoint}/{name}", "error": "exists"})

    def _look(self, name: str, rest: list[str]) -> None:
        repository = self.state.repositories.get(name)
        if repository is None:
            return self._missing("RepoNotFound")
        if rest[:1] == ["refs"]:
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repository.tags.items()]
            return self._send(200, {"branches": [], "converts": [], "tags": tags})
        commit = repository.find("/".join(rest[1:]) if rest[:1] == ["revision"] else "main")
        if commit is None:
            return self._missing("RevisionNotFound")
        files = [{"rfilename": file} for file in repository.commits[commit]]
        return self._send(200, {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": []})

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self.state.repositories.get(name)
        commit = repository.find(revision) if repository else None
        if repository is None or commit is None:
            return self._missing("RepoNotFound" if repository is None else "RevisionNotFound")
        if file not in repository.commits[commit]:
            return self._missing("EntryNotFound")
        data = repository.commits[commit][file]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def _preupload(self, name: str, rest: list[str], body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self._send(200, {"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**thing, "actions": {"upload": {"href": f"{self.state.endpoint}/upload/{thing['oid']}"}}}
            for thing in asked["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.state.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        if self.state.race:
            repository.commit({**self.state.head(name), "other": b"work"})
        tree = dict(self.state.head(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.find("main")):
                return self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                tree[value["path"]] = self.state.uploads[value["oid"]]
        made = repository.commit(tree)
        url = f"{self.state.endpoint}/{name}/commit/{made}"
        return self._send(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    def _tag(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.state.repositories[name]
        tag = json.loads(body)["tag"]
        known = tag in repository.tags
        if not known:
            repository.tags[tag] = str(repository.find("/".join(rest)))
        self._send(409 if known else 200, {"error": "exists"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
