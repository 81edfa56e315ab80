"""A stand-in for the Hugging Face Hub on this machine: as much of its HTTP interface as sharing a model uses."""

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

COMMIT = "0" * 39 + "1"


@dataclass
class Hub:
    """Its contents and what was asked of it."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> contents."""
    private: dict[str, bool] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository -> status and X-Error-Code of every answer about it."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def asked(self, method: str, part: str) -> int:
        """Count requests of a method whose path has `part` in it."""
        return sum(m == method and part in path for m, path in self.requests)


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a running stand-in; its address is `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, body: bytes) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        hub.tokens.add((self.headers.get("Authorization") or " ").partition(" ")[2] or None)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'anna')}/{wanted['name']}"
            hub.files.setdefault(name, {})
            hub.private.setdefault(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
            return self._json({"url": f"{hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if name in hub.refusals:
            status, code = hub.refusals[name]
            return self._send(status, b"", {"X-Error-Code": code} if code else {})
        if name not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        return self._about(name, path.partition(name)[2].strip("/"), body)

    def _about(self, name: str, what: str, body: bytes) -> None:
        hub, files = self.hub, self.hub.files[name]
        if what.startswith("resolve/"):
            contents = files.get(what.split("/", 2)[2])
            if contents is None:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            tag = f'"{hashlib.sha256(contents).hexdigest()}"'
            return self._send(200, contents, {"ETag": tag, "X-Repo-Commit": COMMIT})
        if what.startswith("tree/"):
            return self._json([{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items()])
        if what.startswith("preupload/"):
            told = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": told})
        if what.startswith("commit/"):
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            sent = {
                v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")
            }
            hub.commits.append(sent)
            files |= sent
            return self._json({"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "private": hub.private.get(name, False), "siblings": siblings, "sha": COMMIT})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, contents: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(contents))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(contents)
