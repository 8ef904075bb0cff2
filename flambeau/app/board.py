"""``flambeau board``: the papers page, where every card runs. For browsers of this machine; torch stays in the runs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flambeau.app.report import templates
from flambeau.app.results import picture, recorded
from flambeau.files import read_json
from flambeau.papers.catalog import catalog, describe

RUN_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{2}-[0-9]{2}-[0-9]{2}[A-Za-z0-9_+]{0,32}")
FIGURE_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}\.png")
BODY_LIMIT = 64 << 10


class Board:
    """The papers page of a folder of runs.

    Args:
        runs: where run folders are written and looked for.
        hosts: host names that a browser may use; others are refused, so that no other site can reach the board.
    """

    def __init__(self, runs: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")):
        self.runs = Path(runs)
        self.pages = templates()
        self._process: subprocess.Popen | None = None
        self.app = Starlette(
            routes=[
                Route("/", self.index),
                Route("/papers/{key}", self.paper),
                Route("/papers/{key}/picture.png", self.picture),
                Route("/papers/{key}/runs", self.start, methods=["POST"]),
                Route("/runs/{key}/{name}/events", self.events),
                Route("/runs/{key}/{name}/report.html", self.report),
                Route("/runs/{key}/{name}/figures/{figure}", self.figure),
                Route("/runs/{key}/{name}/stop", self.stop, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        )

    async def index(self, request: Request) -> Response:
        papers = [(paper, recorded(paper.key) if paper.runs else None) for paper in catalog().values()]
        families = sorted({paper.family for paper, _ in papers})
        pictures = {paper.key for paper, _ in papers if picture(paper.key)}
        page = self.pages.get_template("catalog.html")
        return HTMLResponse(page.render(papers=papers, families=families, pictures=pictures))

    async def paper(self, request: Request) -> Response:
        paper = self._paper(request)
        page = self.pages.get_template("paper.html")
        return HTMLResponse(
            page.render(
                paper=paper,
                description=describe(paper.key) if paper.runs else None,
                result=recorded(paper.key),
                picture=picture(paper.key) is not None,
                past=self._past_runs(paper.key),
            )
        )

    async def picture(self, request: Request) -> Response:
        path = picture(self._paper(request).key)
        if path is None:
            raise HTTPException(404, "no recorded picture")
        return FileResponse(path)

    async def start(self, request: Request) -> Response:
        """Start a run: ``{"preset": ..., "seed": ..., "overrides": [...]}``; answers ``{"run": name}``."""
        paper = self._paper(request)
        origin = request.headers.get("origin")
        if origin is not None and origin.split("//", 1)[-1] != request.headers.get("host"):
            raise HTTPException(403, "runs are started from the board's own pages")
        wanted = await _body(request)
        preset, seed, overrides = wanted.get("preset", "cpu"), wanted.get("seed", 0), wanted.get("overrides", [])
        if not paper.runs:
            raise HTTPException(404, f"{paper.key} has no experiment in this version yet")
        if preset not in ("cpu", *describe(paper.key).presets):
            raise HTTPException(400, f"unknown preset {preset!r}")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise HTTPException(400, f"seed must be a whole number from 0, got {seed!r}")
        if not (
            isinstance(overrides, list)
            and all(isinstance(o, str) and "=" in o[1:] and o[0] not in "-=" for o in overrides)
        ):
            raise HTTPException(400, "each change must be of the form path=value")
        if self._process is not None and self._process.poll() is None:
            raise HTTPException(409, "a run is under way; wait for it or stop it")
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.runs / paper.key / name
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "flambeau", "run", paper.key, "--preset", preset, "--seed", str(seed)]
        with (folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--out", str(folder), "--", *overrides],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return JSONResponse({"run": name}, status_code=201)

    async def events(self, request: Request) -> Response:
        """Server-sent events of a run: ``progress`` while it goes on, one ``finished`` or ``failed`` at its end."""
        folder = self._folder(request)
        return StreamingResponse(
            self._follow(folder), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def report(self, request: Request) -> Response:
        return _file(self._folder(request) / "report.html")

    async def figure(self, request: Request) -> Response:
        name = request.path_params["figure"]
        if not FIGURE_NAME.fullmatch(name):
            raise HTTPException(404, "no such figure")
        return _file(self._folder(request) / "figures" / name)

    async def stop(self, request: Request) -> Response:
        """Interrupt the run under way; it saves what it has, and ``--resume`` goes on with it."""
        self._folder(request)
        if self._process is None or self._process.poll() is not None:
            raise HTTPException(409, "no run is under way")
        self._process.send_signal(signal.SIGINT)
        return JSONResponse({"stopping": True})

    async def _follow(self, folder: Path) -> AsyncIterator[str]:
        progress, offset = folder / "progress.jsonl", 0
        process = self._process
        while True:
            ended = process is None or process.poll() is not None
            if progress.exists():
                with progress.open("rb") as file:
                    file.seek(offset)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                offset += len(whole)
                for line in whole.decode().splitlines():
                    yield f"event: progress\ndata: {line}\n\n"
            if ended:
                break
            await asyncio.sleep(0.2)
        state = read_json(folder / "run.json") if (folder / "run.json").exists() else {"status": "failed"}
        if state["status"] == "finished":
            shown = {name: state[name] for name in ("claims", "figures", "notes", "seconds")}
            yield f"event: finished\ndata: {json.dumps(shown)}\n\n"
        else:
            output = folder / "output.txt"
            last = output.read_text(errors="replace").strip().splitlines()[-1:] if output.exists() else []
            error = " ".join(last) or state.get("error") or "the run ended early"
            yield f"event: failed\ndata: {json.dumps({'error': error})}\n\n"

    def _past_runs(self, key: str) -> list[dict[str, Any]]:
        """The newest finished runs of a paper, at most ten."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.runs / key).glob("*/run.json"), reverse=True):
            if len(found) == 10:
                break
            try:
                state = read_json(path)
            except ValueError:
                continue
            if state.get("status") == "finished" and RUN_NAME.fullmatch(path.parent.name):
                held = [claim["holds"] for claim in state["claims"]]
                found.append(
                    {
                        "name": path.parent.name,
                        "preset": state["preset"],
                        "seed": state["seed"],
                        "held": held.count(True),
                        "failed": held.count(False),
                    }
                )
        return found

    def _paper(self, request: Request):
        paper = catalog().get(request.path_params["key"])
        if paper is None:
            raise HTTPException(404, "no such paper")
        return paper

    def _folder(self, request: Request) -> Path:
        """The run folder that a request names; names are matched whole, so none leads out of `runs`."""
        name = request.path_params["name"]
        folder = self.runs / self._paper(request).key / name
        if not RUN_NAME.fullmatch(name) or not folder.is_dir():
            raise HTTPException(404, "no such run")
        return folder


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object, at most `BODY_LIMIT` bytes."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_LIMIT:
            raise HTTPException(413, f"a request has at most {BODY_LIMIT} bytes")
    try:
        value = json.loads(content)
    except ValueError:
        raise HTTPException(400, "the request is not JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the request must be a JSON object")
    return value


def _file(path: Path) -> Response:
    if not path.is_file():
        raise HTTPException(404, "not there (yet)")
    return FileResponse(path)
