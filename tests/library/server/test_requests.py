"""Requests that are none, slow clients, a thousand at once: the server answers the next one."""

import contextlib
import itertools
import selectors
import socket
import threading
import time

import pytest

import stan_infer as si
from stan_infer.library.server import connections, held, row_files
from tests.library.server.conftest import MOTION, TEXT, serving

HOST = b"Host: localhost\r\n"
TARGETS = [
    b"/", b"/library", b"/search?text=a", b"/video/0", b"/thumbnail/0", b"*", b"", b"//", b"?",
    b"http://localhost/", b"http://evil.example/", b"/\xff\xfe", b"/\0", b"/%", b"/%zz", b"/%00",
    b"/../../../../etc/passwd", b"/video/..%2f..%2fetc%2fpasswd", b"/" + b"a" * 20_000,
    b"/search?" + b"text=a&" * 3000, b"/a b", b"/\r\nHost: evil.example", b"/video/0;/../1",
    b"/search?text=" + b"%" * 900, b"/search?text=%ed%a0%80", b"file:///etc/passwd",
]  # fmt: skip
LINES = [
    b"GET %b HTTP/1.1\r\n", b"GET %b\r\n", b"GET %b HTTP/0.9\r\n", b"GET %b HTTP/2.0\r\n",
    b"GET %b HTTP/9.9\r\n", b"GET  %b HTTP/1.1\r\n", b"get %b http/1.1\r\n", b"\r\n\r\nGET %b",
    b"GET %b HTTP/1.1\n", b"POST %b HTTP/1.1\r\n", b"CONNECT %b HTTP/1.1\r\n",
]  # fmt: skip
HEADERS = [
    b"", b"Host: localhost\r\nHost: evil.example\r\n", b"Host : localhost\r\n", b"Host\r\n",
    b": a\r\n", b"Host: evil.example\r\n", b" Host: localhost\r\n", b"Host: localhost\0\r\n",
    HOST + b"A: " + b"x" * 70_000 + b"\r\n", HOST + b"A: b\r\n" * 5000,
    HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n", HOST + b"Content-Length: -1\r\n",
    HOST + b"Content-Length: 99999999999999999999\r\n", HOST + b"Content-Length: 1e3\r\n",
    HOST + b"Content-Length: 0, 44\r\n", HOST + b"Content-Length: +44\r\n",
    HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 44\r\n",
    HOST + b"Transfer-Encoding: chunked\r\n", HOST + b"Transfer-Encoding: xchunked\r\n",
    HOST + b"Transfer-Encoding: chunked, identity\r\n", HOST + b"Expect: 100-continue\r\n",
    HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n",
    HOST + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    HOST + b"X-Forwarded-Host: evil.example\r\nX-Forwarded-For: 1.2.3.4\r\n",
    HOST + b"Range: bytes=" + b"0-0," * 3000 + b"\r\n", HOST + b"Range: bytes=-\r\n",
    HOST + b"If-Range: " + b"x" * 9000 + b"\r\nRange: bytes=0-9\r\n",
    HOST + b"A: \xff\xfe\r\n", HOST + b"A:\tb\r\n c\r\n", HOST + b"\xc3\xbc: b\r\n",
]  # fmt: skip
WHOLE = [
    b"", b"\0" * 4000, b"\r\n" * 4000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"a" * 200_000, b"\xff" * 999,
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" * 2,
    (b"GET /library HTTP/1.1\r\n" + HOST + b"\r\n") * 500, b"HTTP/1.1 200 OK\r\n\r\n",
    b"POST /search HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n" + b"x" * 900,
]  # fmt: skip


def malformed():
    """300 and more: each line with each target, and each header with a sound line."""
    for line, target in itertools.product(LINES, TARGETS):
        yield line % target + HOST + b"\r\n"
    for headers in HEADERS:
        yield b"GET /library HTTP/1.1\r\n" + headers + b"\r\n"
    yield from WHOLE


def statuses(answer):
    """Of every answer in what a connection gave; AssertionError for what is none."""
    found = []
    while answer:
        head, end, rest = answer.partition(b"\r\n\r\n")
        version, status, _ = head.split(b" ", 2)
        assert end and version == b"HTTP/1.1", answer[:200]
        found.append(int(status))
        names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if found[-1] < 200:
            answer = rest
        elif b"content-length" in names:
            answer = rest[int(names[b"content-length"]) :]
        else:
            break  # until the end
    return found


def test_what_is_no_request_is_refused(server):
    count = 0
    for sent in malformed():
        found = statuses(server.sent(sent))
        assert not [s for s in found if s >= 500], sent[:200]
        assert b"evil" not in sent[:40] or 200 not in found, sent[:200]
        count += 1
        if count % 50 == 0:
            assert server.search(TEXT)["hits"]
    assert count >= 300 and server.search(TEXT)["hits"]


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 44\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\nContent-Length: 44\r\n",
        b"Content-Length: 44\r\nTransfer-Encoding: chunked\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_no_request_is_hidden_in_another(server, head, method):
    """What follows as a body is answered by nobody: the connection is closed."""
    hidden = b"GET /library HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = server.sent(method + b" / HTTP/1.1\r\n" + HOST + head + b"\r\n" + b"0\r\n\r\n" + hidden)
    assert found.count(b"HTTP/1.1") == 1 and b"moments" not in found
    assert found.split()[1] in (b"400", b"405", b"413")


def test_requests_in_parts_and_behind_each_other_are_answered(server):
    one = b"GET /library HTTP/1.1\r\n" + HOST + b"\r\n"
    assert statuses(server.sent(*(one[i : i + 1] for i in range(len(one))))) == [200]
    assert statuses(server.sent(one * 20)) == [200] * 20


def test_slow_clients_are_left(server, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_S", 0.05)
    for head in (b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + HOST + b"A: "):
        with server.connected() as slow:
            slow.sendall(head)
            with contextlib.suppress(ConnectionError):
                assert slow.recv(100) == b""
    with server.connected() as slow:  # also the second request of a connection
        slow.sendall(b"GET /page.css HTTP/1.1\r\n" + HOST + b"\r\nGET /")
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(65536):
                found += part
    assert statuses(found) == [200]


def test_a_client_that_drips_is_left(server, monkeypatch):
    """Each byte comes in time, the request does not."""
    monkeypatch.setattr(connections, "REQUEST_S", 0.3)
    with server.connected() as slow, pytest.raises(ConnectionError):
        for byte in itertools.chain(b"GET / HTTP/1.1\r\nA: ", itertools.repeat(120)):
            slow.sendall(bytes([byte]))
            time.sleep(0.01)


def test_a_client_that_does_not_read_is_left(server, made, session, monkeypatch, tmp_path):

    monkeypatch.setattr(connections, "STALL_S", 0.05)
    video = tmp_path / "clips" / "long.mp4"
    video.parent.mkdir()
    free = 64 * 2**20
    clip = (MOTION / "clips" / "green_bar_grows.mp4").read_bytes()
    video.write_bytes(clip + free.to_bytes(4) + b"free" + bytes(free - 8))
    si.embed_library(session, [video.parent], tmp_path / "library", workers=1)
    with serving(tmp_path / "library", session) as other, other.connected() as slow:
        slow.sendall(b"GET /video/0 HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(0.5)
        found = 0
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(2**20):
                found += len(part)
        assert 0 < found < free
        assert len(other.ask("/video/0")[2]) > free, "who reads gets all of it"


def test_a_thousand_at_once(server):
    """Each is answered or told to come again; the next one is served as ever."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4,096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    threads = threading.active_count()
    try:
        found = [answer for answer in at_once(server, 1000)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    codes = [statuses(answer)[0] if answer else None for answer in found]
    assert {*codes} <= {200, 503, None} and codes.count(200) >= held.MAX_WAITING // 2, codes
    assert codes.count(None) <= 1000 - connections.MAX_OPEN
    assert threading.active_count() <= threads + 45 + held.SEARCHES  # anyio has up to 40
    for _ in range(3):
        assert server.search(TEXT)["hits"]
    assert server.ask("/thumbnail/1")[0] == 200


def at_once(server, count):
    """What each of so many connections gives, which are all open before the first one asks."""
    found = {}
    with contextlib.ExitStack() as stack:
        with selectors.DefaultSelector() as ready:
            for _ in range(count):
                one = stack.enter_context(socket.create_connection((server.host, server.port)))
                found[one] = b""
            for i, one in enumerate(found):
                with contextlib.suppress(ConnectionError):
                    path = b"/thumbnail/%d" % (i % 30) if i % 2 else b"/search?text=a+%d" % i
                    one.sendall(b"GET %b HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (path, HOST))
                ready.register(one, selectors.EVENT_READ)
            while ready.get_map():
                for key, _ in ready.select():
                    part = b""
                    with contextlib.suppress(ConnectionError):
                        part = key.fileobj.recv(65536)
                    found[key.fileobj] += part
                    if not part:
                        ready.unregister(key.fileobj)
    return found.values()


def test_who_comes_too_late_is_told_so(made, session, monkeypatch):
    """With a full queue a search is told to come again, and so is a picture."""
    monkeypatch.setattr(held, "MAX_WAITING", 0)
    monkeypatch.setattr(row_files, "MAX_WAITING", 0)
    with serving(made / "moments", session) as server:
        for path in ("/search?text=a", "/thumbnail/29"):
            status, headers, body = server.ask(path)
            assert (status, headers["retry-after"]) == (503, "1") and b"try again" in body
        monkeypatch.undo()
        assert server.search(TEXT)["hits"] and server.ask("/thumbnail/29")[0] == 200


def test_the_same_picture_is_decoded_once_and_memory_is_bounded(server, monkeypatch):
    pictures, read = row_files.Pictures(60.0), []
    library = type("L", (), {"path": 1, "videos": [(i,) for i in range(99)], "start": [0.0] * 99})
    library.end = library.start
    monkeypatch.setattr(row_files, "MAX_BYTES", 1000)
    monkeypatch.setattr(pictures, "_read", lambda of, place: read.append(place) or b"x" * 300)
    with pictures:
        for place in (0, 0, 1, 0, 2, 3, 0, 1):
            assert pictures.of(library, place).result() == b"x" * 300
        assert read == [0, 1, 2, 3, 1] and pictures._bytes <= 1000
        assert sum(map(len, pictures._kept.values())) == pictures._bytes
