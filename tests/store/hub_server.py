"""A stand-in for the Hugging Face Hub on loopback: as much of its REST interface as uploads and downloads use.

Repositories are real enough to be wrong about: content-addressed objects, atomic commits, branches, pages of listings.
"""

import base64
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"
PAGE = 30


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of a commit: what it is, and where its bytes are; large ones are kept as objects of Git LFS."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass(slots=True)
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def add(self, branch: str, title: str, files: dict[str, Blob]) -> str:
        parent = self.branches.get(branch, "")
        record = json.dumps([parent, title, {path: blob.oid for path, blob in files.items()}])
        commit = hashlib.sha1(record.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.titles.append(title)
        return commit

    def files(self, revision: str = "main") -> dict[str, Blob] | None:
        return self.commits.get(self.branches.get(revision, revision))


class Hub:
    """State of the server, which outlives it.

    ``requests`` lists what was asked, ``fault`` may answer for the server: it gets the method and the path and returns
    a status, or None to let the request through.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.lock = threading.RLock()
        self.endpoint = ""

    def create(self, repo_id: str, **options: Any) -> Repo:
        repo = self.repos[repo_id] = Repo(**options)
        repo.add("main", "initial commit", {".gitattributes": self.blob(b"*.bin filter=lfs\n")})
        return repo

    def blob(self, data: bytes) -> Blob:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.objects[oid] = data
        return Blob(oid, len(data))

    def large(self, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Blob(self.blob(pointer).oid, size, sha256)

    def contents(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Every file of a revision."""
        files = self.repos[repo_id].files(revision)
        assert files is not None
        return {path: self.objects[blob.sha256 or blob.oid] for path, blob in files.items()}

    def put(self, repo_id: str, branch: str = "main", **contents: bytes) -> None:
        """Commit small files, as somebody else would; ``/`` in a name is written as ``__``."""
        repo = self.repos[repo_id]
        new = {path.replace("__", "/"): self.blob(data) for path, data in contents.items()}
        repo.add(branch, "by somebody else", (repo.files(branch) or {}) | new)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Answer requests until the end of the block; gives the endpoint."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self.endpoint
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._read_chunk, b""))
        self.hub.requests.append((self.command, path))
        try:
            status = self.hub.fault(self.command, path)
            if status == 0:
                self.close_connection = True
                return
            if status is not None:
                raise _Refused(status, message="by the test")
            with self.hub.lock:
                self._route([part for part in path.split("/") if part])
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            body = json.dumps({"error": refused.message}).encode()
            self._send(refused.status, body, {name: value for name, value in headers.items() if value})

    def _read_chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, parts: list[str]) -> None:
        match parts:
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "validate-yaml"]:
                yaml.safe_load(json.loads(self.body)["content"].split("---")[1])
                self._json({"errors": [], "warnings": []})
            case ["lfs", sha256]:
                if hashlib.sha256(self.body).hexdigest() != sha256:
                    raise _Refused(400, message="not the object that was announced")
                self.hub.objects[sha256] = self.body
                self._json({})
            case ["datasets", owner, name, "info", "lfs", "objects", "batch"]:
                self._batch(self._repo(owner, name.removesuffix(".git"), write=True))
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._resolve(self._repo(owner, name), revision, "/".join(path))
            case ["api", "datasets", owner, name, *rest]:
                self._dataset(f"{owner}/{name}", self._repo(owner, name, write=self.command == "POST"), rest)
            case _:
                raise _Refused(404)

    def _repo(self, owner: str, name: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not self._known):
            raise _Refused(404 if self._known else 401, "RepoNotFound", "Repository not found")
        if repo.gated and self.command in ("GET", "HEAD"):
            raise _Refused(403, "GatedRepo", "Access to this dataset is restricted")
        if write and not self._known:
            raise _Refused(403, message="you may only read")
        return repo

    def _create(self) -> None:
        if not self._known:
            raise _Refused(401, message="Invalid username or password.")
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/datasets/{repo_id}"}
        if repo_id in self.hub.repos:
            self._send(409, json.dumps({"error": "You already created this dataset repo", **url}).encode())
            return
        assert wanted["type"] == "dataset"
        self.hub.create(repo_id, private=wanted.get("visibility") == "private")
        self._json(url)

    def _dataset(self, repo_id: str, repo: Repo, rest: list[str]) -> None:
        match rest:
            case [] | ["revision", _] if self.command == "GET":
                revision = rest[1] if rest else "main"
                self._files(repo, revision)
                self._json({"id": repo_id, "sha": repo.branches.get(revision, revision), "private": repo.private})
            case ["tree", revision]:
                self._tree(self._files(repo, revision))
            case ["branch", branch]:
                if branch in repo.branches:
                    raise _Refused(409, message="there is such a branch")
                repo.branches[branch] = repo.branches["main"]
                self._json({})
            case ["preupload", revision]:
                self._preupload(self._files(repo, revision))
            case ["commit", branch]:
                self._commit(repo_id, repo, branch)
            case _:
                raise _Refused(404)

    def _files(self, repo: Repo, revision: str) -> dict[str, Blob]:
        files = repo.files(revision)
        if files is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def _tree(self, files: dict[str, Blob]) -> None:
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)
        ]
        for path, blob in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.sha256:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
            entries.append(entry)
        start = int(self.query.get("cursor", ["0"])[0])
        more = f"{self.hub.endpoint}{self.path.partition('?')[0]}?recursive=True&cursor={start + PAGE}"
        headers = {"Link": f'<{more}>; rel="next"'} if start + PAGE < len(entries) else {}
        self._json(entries[start : start + PAGE], headers)

    def _preupload(self, files: dict[str, Blob]) -> None:
        answer = []
        ignored = [self.hub.objects[files[".gitignore"].oid].decode().split()] if ".gitignore" in files else []
        for file in json.loads(self.body)["files"]:
            path, blob = file["path"], files.get(file["path"])
            text = base64.b64decode(file["sample"]).isascii()
            answer.append(
                {
                    "path": path,
                    "uploadMode": "regular" if text and file["size"] < 10_000_000 else "lfs",
                    "shouldIgnore": any(path.endswith(end.lstrip("*")) for end in itertools.chain(*ignored)),
                    "oid": (blob.sha256 or blob.oid) if blob else None,
                }
            )
        self._json({"files": answer})

    def _batch(self, repo: Repo) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(wanted if wanted["oid"] in self.hub.objects else wanted | {"actions": upload})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, repo: Repo, branch: str) -> None:
        files, title = dict(self._files(repo, branch)), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = self.hub.blob(base64.b64decode(value["content"]))
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise _Refused(400, message=f"there is no object {value['oid']}")
                    files[value["path"]] = self.hub.large(value["oid"], value["size"])
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.add(branch, title, files)
        self._json({"commitUrl": f"{self.hub.endpoint}/datasets/{repo_id}/commit/{commit}", "commitOid": commit})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        blob = self._files(repo, revision).get(path)
        if blob is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": repo.branches.get(revision, revision), "ETag": f'"{blob.oid}"'}
        if blob.sha256:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        self._send(200, self.hub.objects[blob.sha256 or blob.oid], headers)
