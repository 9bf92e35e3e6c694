"""A Hub and a release server on loopback, answering what `huggingface_hub` and audiotag ask as the Hub would.

What it knows: resolving files (with the Hub's headers, and large files redirected to another host), missing and gated
repositories, revisions and files, creating a repository, uploading large files through Git LFS, committing. And
faults on request: statuses, cut connections, ignored ranges, false lengths, delays.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "a-token-for-tests"


@dataclass
class Fault:
    """What goes wrong with one answer to a GET of a release or large file."""

    status: int | None = None
    cut_after: int | None = None  # bytes of the body before the connection is cut
    announce: int | None = None  # a Content-Length that is not the body's
    no_length: bool = False
    ignore_range: bool = False
    delay_s: float = 0.0


@dataclass
class Repository:
    """Commits, the newest last, each a whole tree of names to contents."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        tree = (self.commits[-1][1] if self.commits else {}) | files
        oid = hashlib.sha1(repr((len(self.commits), sorted(tree.items()))).encode()).hexdigest()
        self.commits.append((oid, tree))
        return oid

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main" and self.commits:
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def etag(name: str, content: bytes) -> str:
    """What the Hub names a content by: SHA-256 if large, else git's blob id."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 as soon as it is made; answers once `start` is called."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.release_url = f"{self.url}/releases/"
        self.clear()

    def clear(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.releases: dict[str, bytes] = {}
        self.faults: list[Fault] = []  # used up by the answers to come, one each
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def publish(self, repo_id: str, files: dict[str, bytes], **settings: bool) -> str:
        """Commit files to a repository, made if need be; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository(**settings))
        for name, content in files.items():
            if is_large(name):
                self.large[etag(name, content)] = content
        return repository.commit(files)

    def requested(self, method: str, part: str) -> list[dict[str, str]]:
        """Headers of the requests of a method whose path contains `part`."""
        return [headers for m, path, headers in self.requests if m == method and part in path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_GET(self) -> None:
        self.route("GET")

    def do_PUT(self) -> None:
        self.route("PUT")

    def do_POST(self) -> None:
        self.route("POST")

    def route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((method, path, {k.lower(): v for k, v in self.headers.items()}))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.strip("/").split("/")
        if parts[0] == "releases":
            content = self.server.releases.get(parts[-1])
            return self.answer(404) if content is None else self.send_content(content)
        if parts[0] == "large":
            return self.large(method, parts[1])
        if parts[0] == "api":
            return self.api(parts[1:])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.lfs_batch()
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.answer(404)

    # answers

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def send_content(self, content: bytes) -> None:
        """A file, in part if asked for, with the next fault if there is one."""
        fault = self.server.faults.pop(0) if self.server.faults and self.command == "GET" else Fault()
        time.sleep(fault.delay_s)
        if fault.status is not None:
            return self.answer(fault.status)
        start = 0
        wanted = self.headers.get("Range")
        if wanted and not fault.ignore_range:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                return self.answer(416, Content_Range=f"bytes */{len(content)}")
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not fault.no_length:
            self.send_header("Content-Length", str(len(body) if fault.announce is None else fault.announce))
        cut = fault.cut_after is not None or fault.no_length or fault.announce is not None
        if cut:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if fault.cut_after is None else body[: fault.cut_after])

    # the Hub

    def may(self, repo_id: str) -> Repository | None:
        """The repository, or None after an error has been answered as the Hub words it."""
        repository = self.server.repositories.get(repo_id)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        if repository.gated and not known:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access to this model is restricted")
            return None
        return repository

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self.may(repo_id)
        if repository is None:
            return
        commit = repository.tree(revision)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        oid, tree = commit
        if name not in tree:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=oid)
        content, tag = tree[name], etag(name, tree[name])
        if not is_large(name):
            return self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=oid)
        # Another host name of this machine: the Hub too redirects to hosts that must not see the token.
        return self.answer(
            302,
            Location=f"http://localhost:{self.server.server_port}/large/{tag}",
            X_Linked_ETag=f'"{tag}"',
            X_Linked_Size=str(len(content)),
            X_Repo_Commit=oid,
        )

    def large(self, method: str, oid: str) -> None:
        if method == "PUT":
            found = hashlib.sha256(self.body).hexdigest()
            if found != oid:
                return self.answer(400)
            self.server.large[oid] = self.body
            return self.answer(200)
        content = self.server.large.get(oid)
        return self.answer(404) if content is None else self.send_content(content)

    def lfs_batch(self) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            plain = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.large:
                href = f"http://localhost:{self.server.server_port}/large/{wanted['oid']}"
                plain["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(plain)
        self.json({"transfer": "basic", "objects": objects})

    def api(self, parts: list[str]) -> None:
        if parts == ["validate-yaml"]:
            return self.json({"errors": [], "warnings": []})
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        if parts == ["repos", "create"]:
            wanted = json.loads(self.body)
            repo_id = f"{wanted['organization']}/{wanted['name']}"
            exists = repo_id in self.server.repositories
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.repositories.setdefault(repo_id, Repository(private=private))
            return self.json({"url": f"{self.server.url}/{repo_id}", "name": repo_id}, 409 if exists else 200)
        if len(parts) >= 4 and parts[0] == "models":
            repo_id, verb = "/".join(parts[1:3]), parts[3]
            repository = self.may(repo_id)
            if repository is None:
                return None
            if verb == "preupload":
                return self.preupload(repository)
            if verb == "commit":
                return self.commit(repository, repo_id)
            if verb == "revision" and repository.commits:
                return self.json({"id": repo_id, "sha": repository.commits[-1][0], "siblings": [], "tags": []})
        return self.answer(404)

    def preupload(self, repository: Repository) -> None:
        tree = repository.commits[-1][1] if repository.commits else {}
        answers = []
        for wanted in json.loads(self.body)["files"]:
            name = wanted["path"]
            oid = etag(name, tree[name]) if name in tree else None
            mode = "lfs" if is_large(name) else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": answers})

    def commit(self, repository: Repository, repo_id: str) -> None:
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        oid = repository.commit(files)
        self.json({"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid})
