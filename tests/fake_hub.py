"""The parts of the Hub's protocol that the client uses, over HTTP on the loopback.

Repositories, commits, LFS, resolve.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse


@dataclass
class Repo:
    private: bool = False
    commits: dict = field(default_factory=dict)
    """Commit -> path -> (content, whether by LFS)."""
    branches: dict = field(default_factory=dict)
    pull_requests: int = 0


def not_found(code):
    return HTTPException(404, headers={"X-Error-Code": code})


class FakeHub:
    """State, faults and the server.

    `hub.faults` maps "HEAD" or "GET" of a resolve to a function of its response.
    """

    def __init__(self, port_socket):
        self.socket = port_socket
        self.url = f"http://127.0.0.1:{port_socket.getsockname()[1]}"
        self.clear()
        self.server = uvicorn.Server(
            uvicorn.Config(self.application(), log_level="warning", lifespan="off")
        )
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [port_socket]}, daemon=True
        )

    def clear(self):
        self.repos = {}
        self.lfs = {}
        self.faults = {}
        self.requests = []

    def start(self):
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(5)

    # ---------------------------------------------------------------------- state

    def repo(self, repo_id, request=None):
        repo = self.repos.get(repo_id)
        allowed = (
            request is None
            or (repo and not repo.private)
            or request.headers.get("authorization") == "Bearer right"
        )
        if repo is None or not allowed:
            raise not_found("RepoNotFound")
        return repo

    def tree(self, repo, revision):
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise not_found("RevisionNotFound")
        return commit, repo.commits[commit]

    def commit(self, repo_id, revision, files):
        """Add files as a commit; returns its id. Tests call it to move a branch."""
        repo = self.repos.setdefault(repo_id, Repo())
        old = repo.commits.get(repo.branches.get(revision), {})
        commit = hashlib.sha1(f"{repo_id}{len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = old | files
        repo.branches[revision] = commit
        return commit

    # ---------------------------------------------------------------------- protocol

    def application(self):
        app = FastAPI()

        @app.middleware("http")
        async def remember(request: Request, call_next):
            self.requests.append(f"{request.method} {request.url.path}")
            return await call_next(request)

        @app.post("/api/repos/create")
        async def create(request: Request):
            body = await request.json()
            repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
            if request.headers.get("authorization") not in ("Bearer right",):
                raise HTTPException(401)
            if repo_id in self.repos:
                return JSONResponse({"url": f"{self.url}/{repo_id}"}, 409)
            self.repos[repo_id] = Repo(
                private=bool(body.get("private") or body.get("visibility") == "private")
            )
            self.commit(repo_id, "main", {})
            return {"url": f"{self.url}/{repo_id}", "id": repo_id}

        @app.post("/api/validate-yaml")
        async def validate(request: Request):
            return {"errors": [], "warnings": []}

        @app.post("/api/models/{owner}/{name}/branch/{branch}")
        async def branch(owner: str, name: str, branch: str):
            repo = self.repo(f"{owner}/{name}")
            repo.branches.setdefault(branch, repo.branches["main"])
            return {}

        @app.post("/api/models/{owner}/{name}/preupload/{revision:path}")
        async def preupload(owner: str, name: str, revision: str, request: Request):
            self.tree(self.repo(f"{owner}/{name}", request), revision)
            files = (await request.json())["files"]
            return {
                "files": [
                    {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                    for f in files
                ]
            }

        def mode(path):
            return "lfs" if path.endswith((".safetensors", ".png")) else "regular"

        @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(owner: str, name: str, request: Request):
            objects = (await request.json())["objects"]
            upload = [
                o | {"actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}} for o in objects
            ]
            return {"transfer": "basic", "objects": upload}

        @app.put("/lfs/{oid}")
        async def put(oid: str, request: Request):
            self.lfs[oid] = await request.body()
            return {}

        @app.post("/api/models/{owner}/{name}/commit/{revision:path}")
        async def commit(owner: str, name: str, revision: str, request: Request):
            repo_id = f"{owner}/{name}"
            repo = self.repo(repo_id, request)
            files = {}
            for line in (await request.body()).splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = (base64.b64decode(value["content"]), False)
                if entry["key"] == "lfsFile":
                    files[value["path"]] = (self.lfs[value["oid"]], True)
            answer = {}
            if request.query_params.get("create_pr"):
                repo.pull_requests += 1
                repo.branches[f"refs/pr/{repo.pull_requests}"] = repo.branches["main"]
                revision = f"refs/pr/{repo.pull_requests}"
                answer["pullRequestUrl"] = f"{self.url}/{repo_id}/discussions/{repo.pull_requests}"
            oid = self.commit(repo_id, revision, files)
            return answer | {
                "commitOid": oid,
                "commitUrl": f"{self.url}/{repo_id}/commit/{oid}",
                "success": True,
            }

        @app.get("/api/models/{owner}/{name}")
        @app.get("/api/models/{owner}/{name}/revision/{revision:path}")
        async def info(owner: str, name: str, request: Request, revision: str = "main"):
            sha, files = self.tree(self.repo(f"{owner}/{name}", request), revision)
            return {
                "id": f"{owner}/{name}",
                "sha": sha,
                "siblings": [{"rfilename": f} for f in files],
            }

        @app.api_route("/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
        async def resolve(owner: str, name: str, rest: str, request: Request):
            repo = self.repo(f"{owner}/{name}", request)
            match = re.match(r"(refs/pr/\d+|[^/]+)/(.+)", rest.replace("%2F", "/"))
            sha, files = self.tree(repo, match[1])
            if match[2] not in files:
                raise not_found("EntryNotFound")
            content, by_lfs = files[match[2]]
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            etag = hashlib.sha256(content).hexdigest() if by_lfs else git
            headers = {
                "ETag": f'"{etag}"',
                "X-Repo-Commit": sha,
                "Content-Length": str(len(content)),
            }
            response = Response(
                content if request.method == "GET" else b"",
                headers=headers,
                media_type="application/octet-stream",
            )
            return self.faults.get(request.method, lambda r: r)(response)

        return app


def free_socket():
    """A listening socket on a free port, kept so that nobody else takes the port."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found
