"""A stand-in for the Hugging Face Hub on this machine: the part of its HTTP interface that huggingface_hub uses here.

Repositories live in memory, each branch as a mapping from paths to contents. Files are taken as regular ones, inline.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


def send_requests_to(url, cache, monkeypatch):
    """Make huggingface_hub talk to another address, with an empty cache and no pauses between attempts."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    huggingface_hub.HfFileSystem.clear_instance_cache()


@contextlib.contextmanager
def hub_in_memory(cache, monkeypatch):
    """A stand-in that huggingface_hub talks to."""
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with HubStandIn() as stand_in:
        send_requests_to(stand_in.url, cache, monkeypatch)
        yield stand_in
    huggingface_hub.HfFileSystem.clear_instance_cache()


class HubStandIn:
    """Use as a context; `url` is the endpoint, `repos` the contents by "datasets/user/name" or "models/user/name"."""

    def __init__(self):
        self.repos = {}
        self.requests = []

    def __enter__(self):
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def commit_of(self, repo):
        files = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in self.repos[repo].items())
        return hashlib.sha1(json.dumps(files).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self.answer_with_repo(f"{found[1]}/{found[2]}")
        if found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            return self.answer_with_tree(f"{found[1]}/{found[2]}", found[4] or "")
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.answer_with_file(f"{(found[1] or 'models/').rstrip('/')}/{found[2]}", found[4])
        return self.missing("EntryNotFound")

    def do_POST(self):
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{asked['type']}s/{owner}/{asked['name']}"
            is_there = name in self.hub.repos
            self.hub.repos.setdefault(name, {".gitattributes": b""})
            return self.answer({"url": f"{self.hub.url}/{name}"}, 409 if is_there else 200)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(preupload|commit|paths-info)/([^/]+)", path)
        repo = f"{found[1]}/{found[2]}" if found else ""
        if repo not in self.hub.repos:
            return self.missing("RepoNotFound")
        if found[3] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if found[3] == "paths-info":
            asked = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
            return self.answer([self.info(repo, name) for name in asked["paths"] if self.info(repo, name)])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.hub.repos[repo][line["value"]["path"]]
        oid = self.hub.commit_of(repo)
        return self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def answer_with_repo(self, repo):
        if repo not in self.hub.repos:
            return self.missing("RepoNotFound")
        files = [{"rfilename": name} for name in self.hub.repos[repo]]
        return self.answer(
            {"id": repo.partition("/")[2], "sha": self.hub.commit_of(repo), "siblings": files, "tags": []}
        )

    def answer_with_tree(self, repo, folder):
        if repo not in self.hub.repos:
            return self.missing("RepoNotFound")
        prefix = f"{folder}/" if folder else ""
        below = [name.removeprefix(prefix) for name in self.hub.repos[repo] if name.startswith(prefix)]
        if folder and not below:
            return self.missing("EntryNotFound")
        is_deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        split = [name.split("/") for name in below]
        paths = {prefix + "/".join(p[: i + 1]): None for p in split for i in range(len(p) if is_deep else 1)}
        return self.answer([self.info(repo, name) for name in paths])

    def info(self, repo, name):
        files = self.hub.repos[repo]
        if name in files:
            oid = hashlib.sha1(files[name]).hexdigest()
            return {"type": "file", "path": name, "size": len(files[name]), "oid": oid}
        if any(file.startswith(f"{name}/") for file in files):
            return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
        return None

    def answer_with_file(self, repo, name):
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self.missing("EntryNotFound")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        part = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None] if asked else content
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit_of(repo)}
        if asked:
            headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}"
        return self.send(part, 206 if asked else 200, "application/octet-stream", headers)

    def missing(self, code):
        return self.answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, content, status=200, headers=None):
        return self.send(json.dumps(content).encode(), status, "application/json", headers or {})

    def send(self, body, status, kind, headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
