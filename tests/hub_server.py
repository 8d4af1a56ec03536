"""A server on this machine that speaks the Hugging Face hub's protocol, as far as reading needs."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub:
    """Repositories of commits of files; `seen` has the requests."""

    def __init__(self):
        self.commits = {}  # (repository, commit) -> {file: bytes}
        self.refs = {}  # (repository, revision) -> commit
        self.large = set()  # files whose hash the listing has, as of Git LFS
        self.claims = {}  # file -> the size or hash that the listing claims
        self.status = {}  # repository -> a status that it answers with, and X-Error-Code
        self.seen = []

    def commit(self, repository, files, revision="main"):
        """Add a commit, make it the newest, return it."""
        name = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self.commits[repository, name] = dict(files)
        self.refs[repository, revision] = name
        return name

    def files(self, repository, revision):
        name = self.refs.get((repository, revision), revision)
        return name, self.commits.get((repository, name))


def serve(hub):
    """Start a thread with the server; return it and its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.hub.seen.append((self.command, path, self.headers.get("User-Agent", "")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            revision = parts[5] if parts[4:5] == ["revision"] else "main"
            self.answer_listing(repository, revision)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404)

    def refused(self, repository, revision):
        """Answer what is not there; None where it is."""
        known = {r for r, _ in self.hub.commits}
        if repository in self.hub.status:
            status, code = self.hub.status[repository]
            return self.answer(status, headers={"X-Error-Code": code} if code else {}) or True
        if repository not in known:  # as the hub does without a token
            return self.answer(401, headers={"X-Error-Code": "RepoNotFound"}) or True
        if self.hub.files(repository, revision)[1] is None:
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"}) or True
        return None

    def answer_listing(self, repository, revision):
        if self.refused(repository, revision):
            return
        commit, files = self.hub.files(repository, revision)
        siblings = []
        for name, data in files.items():
            claim = self.hub.claims.get(name, {})
            entry = {"rfilename": name, "size": claim.get("size", len(data)), "blobId": "0" * 40}
            if name in self.hub.large:
                sha256 = claim.get("sha256", hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        model = {"_id": "0", "id": repository, "modelId": repository, "sha": commit}
        self.answer(200, json.dumps(model | {"siblings": siblings}).encode())

    def answer_file(self, repository, revision, name):
        if self.refused(repository, revision):
            return
        commit, files = self.hub.files(repository, revision)
        if name not in files:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(files[name]).hexdigest()
        self.answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
