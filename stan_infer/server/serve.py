"""Show a library as a page on this machine, until it is told to end."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.engines.opened import Source, opened
from stan_infer.errors import InputError, MissingError, check_whole, printable
from stan_infer.library.library import open_library
from stan_infer.library.searched_model import find_model
from stan_infer.library.thumbnails import check_thumbnails
from stan_infer.system.packages import require
from stan_infer.system.result import Say, silent

if TYPE_CHECKING:
    from stan_infer.server.guard import Guard

HOST, PORT = "127.0.0.1", 8000
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKLOG = 1024
_END_S = 2  # for answers that are under way when the server is told to end


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a library is served; see serve_library."""

    host: str = HOST
    port: int = PORT
    mug: bool = False
    template: Any = None
    timeout_s: float = 60.0


def serve_library(
    library: str | Path,
    *,
    model: Source | None = None,
    say: Say = silent,
    ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve the page of a library until KeyboardInterrupt, or what else a signal raises, ends it.

    Nothing can be written through it, and it fetches nothing. Call it from the main thread.

    Args:
        library: a folder that embed_library made; rows that a run adds meanwhile are found.
        model: as in Library.search.
        say: called with a sentence for what differs from what made the library.
        ready: called with the page's address when it can be opened.
        options: host (127.0.0.1; another lets others in, without a password), port (8000; 0: a
            free one), mug (whether the page offers the scores of the Mug head), template and
            timeout_s as in Library.search; those of open_session.

    Raises:
        InputError: no library, an empty one, no model, an address that cannot be taken.
        CheckError: another model.
        MissingError: a package or device is not here.
    """
    own = {f.name for f in fields(ServeOptions)}
    how = ServeOptions(**{k: v for k, v in options.items() if k in own and v is not None})
    words = {k: v for k, v in options.items() if k not in own}
    check_packages()
    check_whole("port", how.port, 0, 65535)
    folder = Path(library)
    with closing_socket(how.host, how.port) as listener:
        source = find_model(open_library(folder)) if model is None else model
        with opened(source, words) as session:
            from stan_infer.server.app import application
            from stan_infer.server.held import Held
            from stan_infer.server.row_files import Pictures

            given = {"template": how.template} if how.template else {}
            with (
                Held(
                    folder, session, mug=how.mug, timeout_s=how.timeout_s, say=say, **given
                ) as held,
                Pictures(how.timeout_s) as pictures,
            ):
                app = application(held, pictures, _LOCAL | {how.host.lower().strip("[]")})
                _run(app, listener, lambda: ready(address_of(how.host, listener)))


def check_packages() -> None:
    """Raise MissingError without what the page needs."""
    for module in ("uvicorn", "starlette.applications"):
        require(module, "the page of a library", "serve")
    check_thumbnails()


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach a server of this name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


@contextmanager
def closing_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Take the address, before the model is opened; InputError where that cannot be."""
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as e:
        raise InputError(
            f"--host {printable(host)} is no address of this machine ({e}); leave it away for "
            f"{HOST}"
        ) from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        # As servers do on POSIX: a port of a run that has just ended is free. On Windows this
        # would let two servers have one port.
        if hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as e:
            raise InputError(
                f"cannot listen at {printable(host)}, port {port}: {e.strerror}; --port 0 takes a "
                "free port"
            ) from None
        yield listener


def address_of(host: str, listener: socket.socket) -> str:
    """The address of the page, as one opens it on this machine."""
    name, port = listener.getsockname()[:2]
    with suppress(ValueError):
        if ipaddress.ip_address(name).is_unspecified:
            host = HOST if listener.family == socket.AF_INET else "::1"
    host = host.strip("[]")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _run(app: Guard, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests in a thread of their own, so that a signal ends the main one at once."""
    import uvicorn

    from stan_infer.server import connections as of

    config = uvicorn.Config(
        app,
        http=of.Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,  # what goes wrong is said by Guard; strangers' requests fill no terminal
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=of.MAX_CONNECTIONS,
        timeout_keep_alive=of.KEEP_S,
        timeout_graceful_shutdown=_END_S,
        h11_max_incomplete_event_size=of.MAX_REQUEST,
    )
    server, failed = uvicorn.Server(config), list[BaseException]()

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, name="server", daemon=True)
    try:
        thread.start()
    except RuntimeError as e:
        raise MissingError(f"{e}: give the process more memory, or more threads") from e
    try:
        while thread.is_alive() and not server.started:
            thread.join(0.01)
        if server.started:
            ready()
        while thread.is_alive():
            thread.join(1.0)
    finally:
        server.should_exit = True
        thread.join()
    raise failed[0] if failed else RuntimeError("the server has ended")
