"""Show a library as a page on this machine, until it is told to end."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.engines.opened import Source, opened
from stan_infer.errors import InputError, MissingError, check_whole, printable
from stan_infer.library.searched_model import find_model
from stan_infer.library.server.held import Held, Reading
from stan_infer.library.thumbnails import check_thumbnails
from stan_infer.system.packages import require
from stan_infer.system.result import Say, divided, silent
from stan_infer.text.templates import PLAIN, read_templates

if TYPE_CHECKING:
    from stan_infer.library.server.guard import Guard

HOST, PORT = "127.0.0.1", 8000
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKLOG = 1024
_END_S = 2  # for answers that are under way when the server is told to end


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a library is served; see served."""

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

    ready: called with the page's address when it can be opened. The rest, and errors: see served.
    """
    with served(library, model=model, say=say, **options) as server:
        ready(server.address)
        while server.thread.is_alive():
            server.thread.join(1.0)


@dataclass(frozen=True)
class Running:
    """A server. address: of its page. thread: in which it runs, until it fails."""

    address: str
    thread: threading.Thread


@contextmanager
def served(
    library: str | Path, *, model: Source | None = None, say: Say = silent, **options: Any
) -> Iterator[Running]:
    """Serve the page of a library inside the block.

    Nothing can be written through it, and it fetches nothing.

    Args:
        library: a folder that embed_library made; rows that a run adds meanwhile are found.
        model: as in Library.search.
        say: called with a sentence for what differs from what made the library.
        options: host (127.0.0.1; another lets others in, without a password), port (8000; 0: a
            free one), mug (whether the page offers the scores of the Mug head), template and
            timeout_s as in Library.search; those of open_session.

    Raises:
        InputError: no library, an empty one, no model, an address that cannot be taken.
        CheckError: another model.
        MissingError: a package or device is not here.
    """
    how, words = divided(ServeOptions, options)
    check_whole("port", how.port, 0, 65535)
    reading = Reading.of(Path(library))
    check_packages()
    with bound(how.host, how.port) as listener:
        source = find_model(reading.library) if model is None else model
        with opened(source, words) as session:
            from stan_infer.library.server.app import application
            from stan_infer.library.server.row_files import Pictures

            templates = read_templates(how.template or PLAIN)
            with (
                Held(reading, session, templates, how.mug, how.timeout_s, say) as held,
                Pictures(how.timeout_s) as pictures,
            ):
                app = application(held, pictures, _LOCAL | {how.host.lower().strip("[]")})
                with _running(app, listener) as thread:
                    yield Running(address_of(how.host, listener), thread)


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
def bound(host: str, port: int) -> Iterator[socket.socket]:
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
            way = f"leave --host away for {HOST}"
            if e.errno != errno.EADDRNOTAVAIL:
                way = "--port 0 takes a free port"
            raise InputError(
                f"cannot listen at {printable(host)}, port {port}: {e.strerror}; {way}"
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


@contextmanager
def _running(app: Guard, listener: socket.socket) -> Iterator[threading.Thread]:
    """Answer requests in a thread of their own, so that a signal ends the main one at once."""
    import uvicorn

    from stan_infer.library.server import connections as of

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
            yield thread
    finally:
        server.should_exit = True
        thread.join()
    if failed:
        raise failed[0]
