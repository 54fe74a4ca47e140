"""A model hub on this machine: enough of its interface to log in, make a repository and take files."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What the hub knows and was told.

    Attributes:
        repositories: name -> whether it is private.
        files: name of a repository -> name of a file -> content.
        requests: method and path of every request.
        role: of the token.
        fail_at: part of a path that is answered by an error.
    """

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    role: str = "write"
    fail_at: tuple[str, int] | None = None

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        self.requests.append(f"{method} {path}")
        if self.fail_at is not None and self.fail_at[0] in path:
            return self.fail_at[1], {"error": "the fake hub was told to fail"}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if token != "Bearer hf_good":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            token_info = {"accessToken": {"displayName": "t", "role": self.role}}
            return 200, {"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": token_info}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.address}/{name}"}
            private = asked.get("private") or asked.get("visibility") == "private"
            self.repositories[name], self.files[name] = bool(private), {}
            return 200, {"url": f"{self.address}/{name}", "name": name}
        found = re.match(r"/api/models/([^/]+/[^/]+)(?:/(.*))?$", path)
        if not found or found[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        return self._in_repository(found[1], (found[2] or "").partition("/")[0], body)

    def _in_repository(self, name: str, what: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[name][line["value"]["path"]] = content
            url = f"{self.address}/{name}/commit/{'0' * 40}"
            return 200, {"commitUrl": url, "commitOid": "0" * 40, "success": True, "hookOutput": ""}
        siblings = [{"rfilename": each} for each in self.files[name]]
        info = {"id": name, "modelId": name, "private": self.repositories[name], "siblings": siblings}
        return 200, {**info, "sha": "0" * 40, "tags": [], "downloads": 0, "likes": 0}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a fake hub on 127.0.0.1."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, token = self.path.partition("?")[0], self.headers.get("Authorization")
            status, content = hub.answer(self.command, path, token, body)
            sent = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)

        do_GET = do_POST = do_HEAD = do_PUT = _serve

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
