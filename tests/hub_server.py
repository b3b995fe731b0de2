"""A small Hugging Face Hub on this machine: what ``huggingface_hub`` asks for, with faults on request.

It keeps commits, refs, pull requests and LFS objects in memory and answers over HTTP as the Hub does: errors
carry ``X-Error-Code``, large files are uploaded apart and are fetched from another origin, a commit is taken
whole or not at all.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".onnx", ".png", ".pkl", ".ckpt")  # what the Hub keeps as LFS
USERS = {
    "hf_ada_write": {"name": "ada", "role": "write", "orgs": ["zoo"]},
    "hf_ada_read": {"name": "ada", "role": "read", "orgs": []},
    "hf_bob_write": {"name": "bob", "role": "write", "orgs": []},
}


@dataclass
class Fault:
    """Answers ``status`` to requests that match, a number of times, or cuts the connection."""

    request: str  # regular expression for "METHOD /path"
    status: int = 0  # 0: the connection is cut half-way; -1: the work is done, but the answer is lost
    times: int = 1
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None  # no answer before this is set


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Blob:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Of the file, or of the pointer that git keeps for a large one."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return git_oid(f"{pointer}size {len(self.content)}\n".encode() if self.large else self.content)


Tree = dict[str, Blob]


class Repo:
    def __init__(self) -> None:
        self.commits: dict[str, Tree] = {}
        self.pulls: list[dict[str, Any]] = []
        self.refs = {"main": self.add({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "")}

    def add(self, tree: Tree, parent: str) -> str:
        listing = json.dumps([parent, len(self.commits), *sorted((p, b.oid) for p, b in tree.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid] = tree
        return oid

    def find(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """The Hub; ``url`` is for ``HF_ENDPOINT``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = threading.RLock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(self)) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What is published, by path."""
        found = self.repos[repo]
        tree = found.commits[found.find(revision) or ""]
        return {path: blob.content for path, blob in tree.items() if path != ".gitattributes"}

    def put(self, repo: str, **files: bytes) -> None:
        """Commits files to main behind everybody's back."""
        found = self.repos.setdefault(repo, Repo())
        tree = dict(found.commits[found.refs["main"]])
        tree |= {path: Blob(content, path.endswith(LARGE)) for path, content in files.items()}
        found.refs["main"] = found.add(tree, found.refs["main"])

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    # What the API answers. Each takes the parts of the path, and ``ask``, which is the request.

    def whoami(self, ask: "Ask") -> Any:
        user = ask.user()
        token = {"displayName": "test", "role": user["role"]}
        orgs = [{"name": name, "type": "org"} for name in user["orgs"]]
        return {"type": "user", "name": user["name"], "orgs": orgs, "auth": {"accessToken": token}}

    def create(self, ask: "Ask") -> Any:
        wanted = ask.json()
        owner = wanted.get("organization") or ask.user()["name"]
        name = f"{owner}/{wanted['name']}"
        ask.may_write(name)
        if name in self.repos:
            raise RefusedError(409, "You already created this model repo")
        self.repos[name] = Repo()
        return {"url": f"{self.url}/{name}"}

    def validate(self, ask: "Ask") -> Any:
        if not ask.json()["content"].startswith("---\n"):
            return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []}
        return {"warnings": [], "errors": []}

    def info(self, ask: "Ask", repo: str, revision: str = "main") -> Any:
        commit, tree = ask.tree(repo, revision)
        return {"id": repo, "sha": commit, "private": False, "siblings": [{"rfilename": p} for p in tree]}

    def listing(self, ask: "Ask", repo: str, revision: str) -> Any:
        found = []
        for path, blob in ask.tree(repo, revision)[1].items():
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
            found.append(entry)
        return found

    def references(self, ask: "Ask", repo: str) -> Any:
        refs = ask.repo(repo).refs
        tags = [n for n in refs if n != "main" and not n.startswith("refs/pr/")]

        def of(prefix: str, names: list[str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": refs[n]} for n in names]

        return {"branches": of("refs/heads/", ["main"]), "tags": of("refs/tags/", tags), "converts": []}

    def discussions(self, ask: "Ask", repo: str) -> Any:
        pulls = ask.repo(repo).pulls
        return {"count": len(pulls), "start": 0, "discussions": pulls}

    def preupload(self, ask: "Ask", repo: str, revision: str) -> Any:
        ask.may_write(repo)
        tree, files = ask.tree(repo, revision)[1], []
        for file in ask.json()["files"]:
            path, old = file["path"], tree.get(file["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = old and (old.sha256 if old.large else old.oid)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def batch(self, ask: "Ask", repo: str) -> Any:
        ask.may_write(repo)
        objects = []
        for wanted in ask.json()["objects"]:
            if wanted["oid"] not in self.large:
                actions = {"upload": {"href": f"{self.cdn}/upload/{wanted['oid']}"}}
                wanted["actions"] = {**actions, "verify": {"href": f"{self.url}/verify"}}
            objects.append(wanted)
        return {"transfer": "basic", "objects": objects}

    def upload(self, ask: "Ask", oid: str) -> Any:
        content = ask.body
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "the content is not what was announced")
        self.large[oid] = content
        return {}

    def verify(self, ask: "Ask") -> Any:
        if len(self.large.get(ask.json()["oid"], b"")) != ask.json()["size"]:
            raise RefusedError(404, "no such object")
        return {}

    def commit(self, ask: "Ask", repo: str, revision: str) -> Any:
        ask.may_write(repo)
        parent, old = ask.tree(repo, revision)
        tree, header = dict(old), {}
        for line in map(json.loads, ask.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            elif value["oid"] in self.large:
                tree[value["path"]] = Blob(self.large[value["oid"]], True)
            else:
                raise RefusedError(400, f"{value['path']} was not uploaded")
        found, pull = self.repos[repo], "create_pr" in ask.query
        if not pull and header.get("parentCommit", parent) != parent:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        oid = found.add(tree, parent)
        answer = {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}
        if not pull:
            found.refs[unquote(revision)] = oid
            return answer
        number = len(found.pulls) + 1
        found.refs[f"refs/pr/{number}"] = oid
        about = {"repo": {"name": repo, "type": "model"}, "author": {"name": ask.user()["name"]}}
        about |= {"isPullRequest": True, "status": "open", "createdAt": "2026-01-01T00:00:00.000Z"}
        found.pulls.append({"title": header["summary"], "num": number, **about})
        return {**answer, "pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"}

    def tag(self, ask: "Ask", repo: str, revision: str) -> Any:
        ask.may_write(repo)
        refs, name = ask.repo(repo).refs, ask.json()["tag"]
        if name in refs:
            raise RefusedError(409, "Tag reference exists already")
        refs[name] = ask.tree(repo, revision)[0]
        return {}


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", HubServer.whoami),
    ("POST", r"/api/repos/create", HubServer.create),
    ("POST", r"/api/validate-yaml", HubServer.validate),
    ("GET", r"/api/models/([^/]+/[^/]+)", HubServer.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", HubServer.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", HubServer.listing),
    ("GET", r"/api/models/([^/]+/[^/]+)/refs", HubServer.references),
    ("GET", r"/api/models/([^/]+/[^/]+)/discussions", HubServer.discussions),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", HubServer.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", r"/upload/([0-9a-f]+)", HubServer.upload),
    ("POST", r"/verify", HubServer.verify),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", HubServer.commit),
    ("POST", r"/api/models/([^/]+/[^/]+)/tag/([^/]+)", HubServer.tag),
]


class Ask(BaseHTTPRequestHandler):
    """One request; ``hub`` is set on a subclass."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def json(self) -> Any:
        return json.loads(self.body)

    def user(self) -> dict[str, Any]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in USERS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return USERS[token]

    def may_write(self, repo: str) -> None:
        user = self.user()
        if user["role"] == "read" or repo.split("/")[0] not in (user["name"], *user["orgs"]):
            raise RefusedError(403, f"You don't have the rights to write to {repo}")

    def repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            known = self.headers.get("Authorization") is not None
            raise RefusedError(404 if known else 401, "Repository not found", "RepoNotFound")
        return self.hub.repos[name]

    def tree(self, repo: str, revision: str) -> tuple[str, Tree]:
        found = self.repo(repo)
        commit = found.find(revision)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit, found.commits[commit]

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query, length = parse_qs(url.query), int(self.headers.get("Content-Length") or 0)
        request = f"{self.command} {url.path}"
        fault = self.hub.fault_for(request)
        self.hub.log.append(f"{request} {self.headers.get('Range', '')}".strip())
        if fault and fault.hold:
            fault.hold.wait(60)
        self.cut = fault is not None and fault.status <= 0
        if fault and fault.status == 0 and length:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length) if length else self.chunked()
        try:
            if fault and fault.status > 0:
                raise RefusedError(fault.status, fault.message)
            with self.hub.lock:
                self.route(url.path)
        except RefusedError as refused:
            body = json.dumps({"error": str(refused)}).encode()
            headers = {
                "X-Error-Message": str(refused),
                **({"X-Error-Code": refused.code} if refused.code else {}),
            }
            self.reply(refused.status, body, headers | (fault.headers if fault else {}))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 (what http.server calls)

    def chunked(self) -> bytes:
        body = b""
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return body

    def route(self, path: str) -> None:
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                self.reply(200, json.dumps(answer(self.hub, self, *match.groups())).encode(), {})
                return
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file:
            self.resolve(*file.groups())
        elif path.startswith("/cdn/"):
            self.send_file(self.hub.large[path.removeprefix("/cdn/")], {})
        else:
            raise RefusedError(404, f"the test server does not know {self.command} {path}")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit, tree = self.tree(repo, revision)
        if unquote(path) not in tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        blob, headers = tree[unquote(path)], {"X-Repo-Commit": commit}
        if not blob.large:
            self.send_file(blob.content, headers | {"ETag": f'"{blob.oid}"'})
            return
        self.hub.large[blob.sha256] = self.hub.large.get(blob.sha256, blob.content)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        self.reply(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{blob.sha256}"})

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            self.reply(200, content, headers)
            return
        start, size = int(asked[1]), len(content)
        self.reply(206, content[start:], headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.close_connection = self.close_connection or self.cut

    def log_message(self, *args: Any) -> None:
        pass


def handler(hub: HubServer) -> type[Ask]:
    return type("Bound", (Ask,), {"hub": hub})
