"""A local stand-in for the Hugging Face Hub: the part of its HTTP interface that pushing and pulling use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The stand-in: `repos` holds the files of each repository by name.

    `private` repositories need the token; `gated` ones have not been granted to anyone. `upload_error` is the status
    and the message with which uploads of large files fail.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    upload_error: tuple[int, str] | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_arguments: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _handle(self) -> None:
        hub, body = self.hub, self._body()
        path = self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            if hub.upload_error is not None:
                return self._answer(hub.upload_error[0], {"error": hub.upload_error[1]})
            hub.blobs[match[1]] = body
            assert hashlib.sha256(body).hexdigest() == match[1]
            return self._answer(200)
        if path == "/api/validate-yaml":
            bad = [{"message": "unknown license"}] if "license: refused" in json.loads(body)["content"] else []
            return self._answer(400 if bad else 200, {"errors": bad, "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            if not known:
                return self._answer(401, {"error": "Invalid username or password."})
            if asked["organization"] != "me":
                return self._answer(403, {"error": "You don't have the rights to create a model here"})
            repo = f"me/{asked['name']}"
            exists = repo in hub.repos
            if not exists:
                hub.repos[repo] = {}
                if asked.get("visibility") == "private" or asked.get("private"):
                    hub.private.add(repo)
            return self._answer(409 if exists else 200, {"url": f"{hub.url}/{repo}"})
        match = re.match(r"/(?:api/models/)?([\w-]+/[\w-]+?)(?:\.git)?(?:/(.*))?$", path)
        assert match is not None, path
        repo, rest = match[1], match[2] or ""
        if repo not in hub.repos or (repo in hub.private and not known):
            return self._answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo in hub.gated:
            return self._answer(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
        return self._in_repo(repo, rest, body)

    def _in_repo(self, repo: str, rest: str, body: bytes) -> None:
        hub = self.hub
        if rest.startswith("preupload/"):
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if rest == "info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if rest.startswith("commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[repo][value["path"]] = hub.blobs[value["oid"]]
            return self._answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{_COMMIT}", "commitOid": _COMMIT})
        if match := re.fullmatch(r"resolve/([\w-]+)/(.+)", rest):
            if match[1] not in ("main", _COMMIT):
                return self._answer(404, {}, X_Error_Code="RevisionNotFound")
            content = hub.repos[repo].get(match[2])
            if content is None:
                return self._answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=_COMMIT)
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._answer(200, content, X_Repo_Commit=_COMMIT, ETag=tag, X_Linked_Size=str(len(content)))
        if rest not in ("", "revision/main"):
            assert rest.startswith("revision/"), f"{self.command} {self.path}"
            return self._answer(404, {}, X_Error_Code="RevisionNotFound")
        return self._answer(200, {"id": repo, "private": repo in hub.private, "sha": _COMMIT, "siblings": []})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 - names that the base class looks for


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a stand-in on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
