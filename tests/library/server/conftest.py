"""A library of the demo's moments, and its server."""

import contextlib
import http.client
import json
import shutil
import socket
from urllib.parse import urlencode, urlsplit

import pytest

import stan_infer as si
from stan_infer.library.server import serve
from stan_infer.video.windows import Windows
from tests.conftest import ROOT

MOTION = ROOT / "examples" / "motion"
TEXT = "a shape moves left"


@pytest.fixture(scope="package")
def session():
    with si.open_session(MOTION / "motion.safetensors") as found:
        yield found


@pytest.fixture(scope="package")
def made(tmp_path_factory, session):
    """The demo's clips and a library of their parts, a second each."""
    for package in ("uvicorn", "starlette"):
        pytest.importorskip(package)
    place = tmp_path_factory.mktemp("serve")
    shutil.copytree(MOTION / "clips", place / "clips")
    windows = Windows(seconds=1.0, stride=0.5)
    si.embed_library(session, [place / "clips"], place / "moments", workers=1, windows=windows)
    return place


@pytest.fixture(scope="package")
def server(made, session):
    with serving(made / "moments", session) as found:
        yield found


@contextlib.contextmanager
def serving(library, session, **options):
    with serve.served(library, model=session, port=0, **options) as running:
        yield Client(running.address)


class Client:
    """Asks a server. address: of its page."""

    def __init__(self, address):
        self.address = address
        parts = urlsplit(address)
        self.host, self.port = parts.hostname, parts.port

    def ask(self, path, method="GET", headers=(), body=None):
        """Status, headers with small names, body."""
        connection = http.client.HTTPConnection(self.host, self.port)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            names = {k.lower(): v for k, v in answer.getheaders()}
            return answer.status, names, answer.read()

    def json(self, path, code=200, **headers):
        status, names, body = self.ask(path, headers=headers)
        assert (status, names["content-type"]) == (code, "application/json"), (path, status, body)
        return json.loads(body)

    def search(self, *texts, code=200, **more):
        query = urlencode([*(("text", t) for t in texts), *more.items()])
        return self.json(f"/search?{query}", code)

    def connected(self):
        return socket.create_connection((self.host, self.port))

    def sent(self, *parts):
        """All that a connection gives for these bytes, whole or in parts, until it is closed."""
        found = b""
        with self.connected() as connection:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    found += part
        return found
