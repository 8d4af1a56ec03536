"""The addresses of the page, and what is answered at each. All are read with GET or HEAD."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from stan_infer.errors import InputError, StanError, printable
from stan_infer.library.contact_sheet import STYLE as SHEET_STYLE
from stan_infer.library.library import Library
from stan_infer.library.query import place_of
from stan_infer.library.search import Hit
from stan_infer.library.server.guard import Guard, busy
from stan_infer.library.server.held import BusyError, Found, Held
from stan_infer.library.server.question import question
from stan_infer.library.server.row_files import Pictures, Videos
from stan_infer.system.html_page import STYLE

_LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent


class NoRowError(Exception):
    """The library has no row of this number."""


def application(held: Held, pictures: Pictures, hosts: frozenset[str]) -> Guard:
    """The ASGI application of one library. hosts: names of this server, in small letters."""
    pages = _Pages(held, pictures, Videos())
    texts = {
        "/": ("text/html", (_HERE / "page.html").read_text(encoding="utf-8")),
        "/page.js": ("text/javascript", (_HERE / "page.js").read_text(encoding="utf-8")),
        "/page.css": (
            "text/css",
            STYLE + SHEET_STYLE + (_HERE / "page.css").read_text(encoding="utf-8"),
        ),
        "/favicon.ico": ("image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg"/>'),
    }
    found = {
        "/library": pages.library,
        "/search": pages.search,
        "/thumbnail/{row}": pages.thumbnail,
        "/video/{row}": pages.video,
    }
    routes = [Route(path, partial(_text, kind, text)) for path, (kind, text) in texts.items()]
    routes += [Route(path, answered(endpoint)) for path, endpoint in found.items()]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refused}), hosts)


async def _text(kind: str, text: str, request: Request) -> Response:
    return Response(text, media_type=kind)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def answered(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint with errors as answers: {"error": one sentence}."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except NoRowError:
            return JSONResponse({"error": "the library has no such row"}, 404)
        except BusyError:
            return busy()
        except (asyncio.CancelledError, CancelledError):
            return JSONResponse({"error": "the server ends"}, 503)
        except InputError as e:
            return JSONResponse({"error": str(e)}, 400)
        except StanError as e:  # a damaged library, a package that is missing
            return JSONResponse({"error": str(e)}, 500)
        except Exception:
            _LOG.exception("this is a bug of stan_infer: %s", request.url.path[:200])
            words = {"error": "an internal error, of which the program's own output says more"}
            return JSONResponse(words, 500)

    return answer


class _Pages:
    def __init__(self, held: Held, pictures: Pictures, videos: Videos) -> None:
        self._held, self._pictures, self._videos = held, pictures, videos

    async def library(self, request: Request) -> Response:
        """What is searched, by what model."""
        held, reading = self._held, self._held.reading
        library, session = reading.library, held.session
        return JSONResponse(
            {
                "name": printable(library.path.absolute().name),
                "rows": len(library.ids),
                "videos": reading.videos,
                "read_at": reading.at,
                "problem": held.problem,
                "model": printable(str(library.passport["facts"].get("checkpoint") or "-")),
                "session": session.describe(),
                "mug": held.mug,
            }
        )

    async def search(self, request: Request) -> Response:
        """The rows that fit best."""
        asked = question(request.scope["query_string"])
        found = await asyncio.wrap_future(self._held.ask(asked))
        result = found.result
        return JSONResponse(
            {
                "asked": [
                    {"kind": t.kind, "value": printable(t.value), "weight": t.weight}
                    for t in result.asked
                ],
                "hits": [_hit(hit, found) for hit in result.hits],
                "rows": result.rows,
                "model_ms": 1e3 * result.model_s,
                "search_ms": 1e3 * result.search_s,
                "notes": [printable(note) for note in found.notes],
            }
        )

    async def thumbnail(self, request: Request) -> Response:
        """The frames of a row that the model saw."""
        library, place = self._row(request)
        try:
            coming = await anyio.to_thread.run_sync(self._pictures.of, library, place)
            picture = await asyncio.shield(asyncio.wrap_future(coming))
        except InputError as e:
            return JSONResponse({"error": str(e)}, 410)
        return Response(picture, media_type="image/jpeg")

    async def video(self, request: Request) -> Response:
        """The video of a row, or the part of it that the request names; for several, all of it."""
        library, place = self._row(request)
        try:
            found = await anyio.to_thread.run_sync(self._videos.of, library, place)
        except InputError as e:
            return JSONResponse({"error": str(e)}, 410)
        if "," in request.headers.get("range", ""):  # no player asks for several parts
            headers = request.scope["headers"]
            request.scope["headers"] = [(k, v) for k, v in headers if k != b"range"]
        return FileResponse(found.path, stat_result=found.status, media_type=found.mime)

    def _row(self, request: Request) -> tuple[Library, int]:
        library = self._held.reading.library
        place = place_of(library.ids, request.path_params["row"])
        if place is None:
            raise NoRowError
        return library, place


def _hit(hit: Hit, found: Found) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "score": hit.score,
        "row": int(found.library.ids[hit.row]),
        "name": printable(Path(hit.video).name),
        "video": printable(hit.video),
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "copies": len(hit.copies),
        "cosines": hit.cosines,
    }
