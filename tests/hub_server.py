"""The few answers of the Hub that its library asks for when it fetches a dataset, from folders on this disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest


class Hub:
    """`commits[repo]` are its folders by commit, the last one being main; `asked` are the files that were fetched."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.hidden: set[str] = set()
        """Files that are listed and cannot be fetched."""
        self.asked: list[str] = []
        self.url = ""

    def publish(self, repo: str, folder: Path) -> str:
        """A new commit with the files of a folder."""
        known = self.commits.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo} {len(known)}".encode()).hexdigest()
        known[commit] = folder
        return commit

    def videos(self) -> list[str]:
        """The video files that were fetched, in order."""
        return [path for path in self.asked if path.endswith(".mp4")]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        repo, (what, revision, *rest) = "/".join(parts[1 + api : 3 + api]), parts[3 + api :] or ("revision", "main")
        commits = self.hub.commits.get(repo)
        if commits is None:
            return self._refuse(404 if api else 401, "RepoNotFound")
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        folder = commits[commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if what == "resolve":
            return self._file(repo, commit, folder, "/".join(rest), body)
        if what == "tree":
            listed = [
                {"type": "file", "path": p.relative_to(folder).as_posix(), "size": p.stat().st_size, "oid": "0" * 40}
                for p in files
            ]
            return self._json(listed)
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return self._json({"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def _file(self, repo: str, commit: str, folder: Path, name: str, body: bool) -> None:
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if not (folder / name).is_file() or name in self.hub.hidden:
            return self._refuse(404, "EntryNotFound")
        content = (folder / name).read_bytes()
        if body:
            self.hub.asked.append(name)
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, body)

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"}, True)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"refused: {code}"}, self.command == "GET")

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def hub_here(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library asks this server, and keeps files in `cache`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    point(hub.url, cache, patch)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do, which the library reads once."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setenv("NO_PROXY", "127.0.0.1")
