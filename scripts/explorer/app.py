"""The explorer's server: JSON under /api, and the page; it answers this machine alone and asks nothing of any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from generator import ParameterPipeline
from generator.training.tasks import task_of
from zoo import Zoo

from ..demo_report.chart import PALETTE
from ..json_values import json_value
from .comparison import compare
from .networks import history, image_shape, plane, plane_methods, trajectories
from .prompting import Prompting, Request
from .runs import RunTable

HOST: Final = "127.0.0.1"
_FOLDER: Final = Path(__file__).parent
_PAGE_SIZE: Final = 100
_MAX_UPLOAD: Final = 64 * 2**20  # bytes
_SOURCES: Final = (
    "default-src 'none'",
    "connect-src 'self'",
    "script-src 'self'",
    "style-src 'self' 'unsafe-inline'",
    "img-src data:",
)


class Explorer:
    """What the page asks for, each answer from the parameters of its address.

    Args:
        zoo: to look at.
        pipe: a generator of its networks; None to look only.
    """

    def __init__(self, zoo: Zoo, pipe: ParameterPipeline | None = None) -> None:
        self.zoo = zoo
        self.table = RunTable.of(zoo)
        try:
            self.task, self.no_task = task_of(zoo), ""
        except (ValueError, KeyError, ImportError, OSError) as error:
            self.task, self.no_task = None, str(error)
        self.prompting = pipe and Prompting(pipe, zoo, self.task)
        self.plane = lru_cache(maxsize=4)(lambda method: plane(zoo, method))

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the page needs to know first."""
        spec = self.zoo.spec
        return {
            "title": f"{len(self.table):,} runs of {spec.task_config.get('name', 'networks')}",
            "text": repr(self.zoo),
            "columns": self.table.summary(),
            "metrics": list(spec.metric_names),
            "methods": plane_methods(),
            "no_task": self.no_task,
            "prompting": self.prompting and self.prompting.summary(),
            "page_size": _PAGE_SIZE,
        }

    def runs(self, where: str = "", sort: str = "run", descending: str = "", offset: str = "0") -> dict[str, Any]:
        rows = self.table.sorted(self.table.rows(where), sort, descending=descending == "1")
        shown = rows[int(offset) :][:_PAGE_SIZE]
        columns = {name: values[shown] for name, values in self.table.columns.items()}
        return {"count": len(rows), "columns": columns}

    def trajectories(self, metric: str, where: str = "", colour: str = "run") -> dict[str, Any]:
        rows = self.table.rows(where)
        found = trajectories(self.zoo, metric, self.table.columns["run"][rows])
        shown = np.array([line["run"] for line in found["lines"]], int)
        return {**found, "count": len(rows), "values": self._values(colour, shown)}

    def map(self, method: str = "PCA", where: str = "", colour: str = "run") -> dict[str, Any]:
        if method not in plane_methods():
            raise ValueError(f"method must be one of {plane_methods()}, got {method!r}")
        found = self.plane(method)
        rows = self.table.rows(where)
        chosen = np.isin(found["runs"], self.table.columns["run"][rows])
        return {**found, "count": len(rows), "chosen": chosen, "values": self._values(colour, found["runs"])}

    def pair(self, first: str, second: str) -> dict[str, Any]:
        return compare(self.zoo, self.task, self._run(first), self._run(second))

    def history(self, run: str) -> dict[str, Any]:
        return history(self.zoo, self._run(run), image_shape(self.task))

    def generate(self, **asked: str) -> dict[str, Any]:
        return self._generator().answer(self._request(asked))

    def download(self, sample: str, kind: str = "safetensors", **asked: str) -> tuple[str, bytes]:
        return self._generator().file(self._request(asked), int(sample), kind)

    def take_examples(self, name: str, content: bytes) -> dict[str, Any]:
        return self._generator().take_examples(name, content)

    def _generator(self) -> Prompting:
        if self.prompting is None:
            raise ValueError("there is no generator; start again with pipeline=PATH")
        return self.prompting

    def _request(self, asked: Mapping[str, str]) -> Request:
        others = dict(asked)
        start, count, seed, examples = (others.pop(name, "") for name in ("start", "num_samples", "seed", "examples"))
        return Request(
            prompt=tuple(sorted((name, float(value)) for name, value in others.items())),
            num_samples=int(count or 4),
            start=self._run(start) if start else None,
            seed=int(seed or 0),
            examples=examples,
        )

    def _run(self, text: str) -> int:
        run = int(text)
        if run not in self.table.columns["run"]:
            raise ValueError(f"there is no run {run}")
        return run

    def _values(self, name: str, runs: np.ndarray) -> np.ndarray:
        """A column's values of these runs; words are numbered in alphabetical order."""
        column = self.table.column(name)
        if column.dtype.kind in "US":
            column = np.unique(column, return_inverse=True)[1]
        return column[np.searchsorted(self.table.columns["run"], runs)]


def make_app(zoo: Zoo, pipe: ParameterPipeline | None = None) -> Starlette:
    """The application; requests by another name than this machine's, as of a rebound address, are refused."""
    explorer = Explorer(zoo, pipe)
    answers: dict[str, Callable[..., Any]] = {
        "about": lambda: explorer.about,
        **{name: getattr(explorer, name) for name in ("runs", "trajectories", "map", "pair", "history", "generate")},
    }

    def answer(request: HttpRequest) -> Response:
        name = request.path_params["name"]
        if name not in answers:
            return JSONResponse({"error": f"there is no {name!r}"}, 404)
        return _guarded(lambda: JSONResponse(json_value(answers[name](**request.query_params))))

    def download(request: HttpRequest) -> Response:
        def packed() -> Response:
            name, content = explorer.download(**request.query_params)
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            return Response(content, media_type="application/octet-stream", headers=headers)

        return _guarded(packed)

    async def take_examples(request: HttpRequest) -> Response:
        if int(request.headers.get("content-length", _MAX_UPLOAD + 1)) > _MAX_UPLOAD:
            return JSONResponse({"error": f"files of examples are up to {_MAX_UPLOAD // 2**20} MiB"}, 413)
        name, content = request.query_params.get("name", ""), await request.body()
        return await run_in_threadpool(lambda: _guarded(lambda: JSONResponse(explorer.take_examples(name, content))))

    def page(request: HttpRequest) -> Response:
        return FileResponse(_FOLDER / "page.html", headers={"Content-Security-Policy": "; ".join(_SOURCES)})

    def asset(request: HttpRequest) -> Response:
        path = _FOLDER / request.path_params["name"]
        if path.name not in {one.name for one in _FOLDER.iterdir() if one.suffix in (".js", ".css")}:
            return JSONResponse({"error": "there is no such file"}, 404)
        return FileResponse(path)

    def palette(request: HttpRequest) -> Response:
        return Response(PALETTE, media_type="text/css")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/palette.css", palette),
            Route("/api/download", download),
            Route("/api/examples", take_examples, methods=["POST"]),
            Route("/api/{name}", answer),
            Route("/{name}", asset),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def _guarded(make: Callable[[], Response]) -> Response:
    """The response, or what is wrong with the request, in words."""
    try:
        return make()
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return JSONResponse({"error": str(error.args[0] if error.args else error)}, 400)
