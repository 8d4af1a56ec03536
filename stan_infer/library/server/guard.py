"""What stands before every request: whom it names as host, what it may ask, what answers bear."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], _Send], Awaitable[None]]

# No script or style but the page's own files, nothing from elsewhere, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Other pages may not show what comes from here, nor hold its window.
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MAX_ACTIVE = 128  # requests that are answered at the same time
_OURS = ("same-origin", "none")  # Sec-Fetch-Site of this page, and of an address that is typed


class Guard:
    """Refuse what is not a reading request of this page, and add HEADERS to every answer."""

    def __init__(self, app: _App, hosts: frozenset[str]) -> None:
        """hosts: names that a request may call this server, in small letters."""
        self._app, self._hosts, self._active = app, hosts, 0

    async def __call__(self, scope: _Message, receive: Any, send: _Send) -> None:
        """Answer one request."""

        async def bearing(message: _Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                names = {k for k, _ in own}
                rest = [(k, v) for k, v in message["headers"] if k.lower() not in names]
                message = {**message, "headers": [*rest, *own]}
            await send(message)

        app: Any = self._refusal(scope) or self._app
        self._active += 1
        try:
            await app(scope, receive, bearing)
        finally:
            self._active -= 1

    def _refusal(self, scope: _Message) -> JSONResponse | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        close = {"connection": "close"}
        if scope["method"] not in ("GET", "HEAD"):
            words = "nothing can be written here: only GET and HEAD"
            return JSONResponse({"error": words}, 405, {"allow": "GET, HEAD", **close})
        if headers.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in headers:
            # It is not read, so that the connection cannot go on.
            return JSONResponse({"error": "a request has no body here"}, 413, close)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0], scope):
            words = "this server has another name; --host NAME lets it answer to a further one"
            return JSONResponse({"error": words}, 421, close)
        site = headers.get(b"sec-fetch-site", [b"none"])[-1].decode("latin-1")
        opens = headers.get(b"sec-fetch-mode") == [b"navigate"] and scope["path"] == "/"
        if site not in _OURS and not opens:
            return JSONResponse({"error": "another site's page asks for this"}, 403, close)
        return busy() if self._active >= MAX_ACTIVE else None

    def _is_ours(self, given: bytes, scope: _Message) -> bool:
        """Whether a request names this server: a page elsewhere whose name leads here does not."""
        name = host_of(given.decode("latin-1"))
        return name is not None and (name in self._hosts or name == _address(scope))


def busy() -> JSONResponse:
    """The answer where too many are being served."""
    words = {"error": "others are served first: try again in a moment"}
    return JSONResponse(words, 503, {"retry-after": "1"})


def host_of(text: str) -> str | None:
    """The name of a Host header without its port, in small letters; None for what is none."""
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, "0"
    if not (port.isascii() and port.isdecimal() and len(port) < 6):
        return None
    return name.lower().strip("[]") if name.isascii() and name else None


def _address(scope: _Message) -> str | None:
    """The address of this machine at which the request came in."""
    server = scope.get("server")
    try:
        found = ipaddress.ip_address(server[0]) if server else None
    except ValueError:
        return None
    # A socket of both families names the older kind so.
    mapped = getattr(found, "ipv4_mapped", None)
    return None if found is None else str(mapped or found)
