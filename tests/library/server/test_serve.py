"""`stan-infer serve`: what each address answers, to whom, and that only rows are sent."""

import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library import nearest
from stan_infer.library.database import ROWS, VECTORS
from stan_infer.library.row_reader import RowReader
from stan_infer.library.server import held, row_files
from stan_infer.library.server.guard import HEADERS, host_of
from stan_infer.library.server.serve import address_of, bound, is_local
from tests.library.server.conftest import MOTION, TEXT, serving
from tests.processes import children
from tests.video.broken_videos import make_clip


@pytest.fixture
def place(made, tmp_path, session):
    """Clips and a library of whole videos that a test may change."""
    shutil.copytree(MOTION / "clips", tmp_path / "clips")
    si.embed_library(session, [tmp_path / "clips"], tmp_path / "library", workers=1)
    return tmp_path


def row_of(library, name):
    found = si.open_library(library)
    (place,) = (i for i, paths in enumerate(found.videos) if paths[0].endswith(name))
    return int(found.ids[place])


def test_a_search_is_that_of_the_library(server, made, session):
    wanted = si.open_library(made / "moments").search(
        {TEXT: 2}, without=[("a bar", 0.5)], model=session, top=7, path="*cross*"
    )
    more = {"not": "a bar::0.5", "top": 7, "path": "*cross*"}
    found = server.search(f"{TEXT}::2", **more)
    for hit, right in zip(found["hits"], wanted.hits, strict=True):
        assert hit["score"] == pytest.approx(right.score, abs=1e-6)
        assert hit["cosines"] == pytest.approx(right.cosines, abs=1e-6)
        assert [hit[k] for k in ("rank", "row", "video", "start_s", "end_s")] == [
            *(right.rank, right.row, right.video, right.start_s, right.end_s)
        ]
    assert found["rows"] == wanted.rows and found["model_ms"] > 0 and found["search_ms"] > 0
    assert [t["kind"] for t in found["asked"]] == ["text", "without"] and not found["notes"]


def test_a_row_finds_itself_and_is_no_text(server, made):
    library = si.open_library(made / "moments")
    (asked, *_), vectors = [7], library.vectors.astype(np.float64)
    hits = server.search(like=asked, top=30)["hits"]
    assert hits[0]["row"] == asked
    cosines = vectors @ vectors[asked]
    scores = [h["score"] for h in hits]  # of moments that do not overlap
    assert len(hits) > 5 and scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([cosines[h["row"]] for h in hits], abs=1e-5)
    both = server.search("7", like="7::2", top=1)["hits"][0]
    text, row = both["cosines"]
    assert both["score"] == pytest.approx((text + 2 * row) / 3) and row > text + 0.1
    assert "has no row '99'" in server.search(like=99, code=400)["error"]


def test_a_slow_search_does_not_hold_the_others(made, session, monkeypatch):
    """One that reads videos again, or waits for the disk, has not the model meanwhile."""
    products, begun, go_on = nearest.products, threading.Event(), threading.Event()

    def slow(vectors, query, ids):
        if len(ids) < len(vectors):  # with a filter
            begun.set()
            assert go_on.wait(60)
        return products(vectors, query, ids)

    monkeypatch.setattr(nearest, "products", slow)
    with (
        serving(made / "moments", session) as server,
        ThreadPoolExecutor(2 * held.SEARCHES) as pool,
    ):
        try:
            first = pool.submit(server.search, TEXT, path="*cross*")
            assert begun.wait(60)
            assert server.search(TEXT)["hits"] and not first.done()
        finally:
            go_on.set()
        assert first.result()["hits"] == server.search(TEXT, path="*cross*")["hits"]
        texts = [f"a shape of number {i}" for i in range(24)]
        beside = [*pool.map(server.search, texts)]
        assert [found["hits"] for found in beside] == [server.search(t)["hits"] for t in texts]


def test_lengths_and_dates_are_those_of_the_library(server, made, session):
    library = si.open_library(made / "moments")
    for options in ({"longer": 2}, {"shorter": 1.5}, {"added_since": "2020-01-01", "longer": 1}):
        right = library.search(TEXT, model=session, **options)
        found = server.search(TEXT, **options)
        assert found["rows"] == right.rows and len(found["hits"]) == len(right.hits)
    assert server.search(TEXT, longer=0)["rows"] == 30
    assert server.search(TEXT, added_before="2020-01-01")["rows"] == 0


def test_the_library_is_described(server):
    found = server.json("/library")
    assert (found["name"], found["rows"], found["videos"]) == ("moments", 30, 10)
    assert found["model"] == "motion.safetensors" and found["session"]["engine"] == "eager"
    assert not found["mug"] and not found["problem"]


def test_a_model_without_a_mug_head_offers_no_scores_of_one(made, session):
    with pytest.raises(si.InputError, match="is no Mug head"):
        with serving(made / "moments", session, mug=True):
            pass


def test_every_answer_bears_the_same_headers(server):
    for path in ("/", "/page.js", "/page.css", "/library", "/search?text=a", "/thumbnail/0"):
        status, headers, body = server.ask(path)
        assert status == 200 and body and HEADERS.items() <= headers.items(), path
        assert not {"server", "set-cookie", "access-control-allow-origin"} & {*headers}
        assert server.ask(path, "HEAD")[::2] == (200, b"")
    for path in ("/nothing", "/video/99", "/search", "/video/99/1"):
        status, headers, body = server.ask(path)
        assert status in (400, 404) and HEADERS.items() <= headers.items(), path
        assert [*json.loads(body)] == ["error"]
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'") and not re.search("unsafe|http", policy)


def test_the_page_has_no_script_or_style_of_its_own(server):
    page = server.ask("/")[2].decode()
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:|https?:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    script = server.ask("/page.js")[2].decode()
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", script)


def test_a_picture_has_the_frames_that_the_model_saw(server, made, session):
    from PIL import Image

    library, side = si.open_library(made / "moments"), row_files.SIDE
    status, headers, body = server.ask("/thumbnail/5")
    picture = np.asarray(Image.open(io.BytesIO(body)))
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    spec = si.library.searched_model.library_spec(library, session)
    with RowReader(library.path, spec, 60) as reader:
        clip = reader.read(Path(library.videos[5][0]), library.start[5], library.end[5])
    frames = {int(i): pixels for i, pixels in zip(clip.indices, clip.pixels, strict=True)}
    assert picture.shape == (-(-len(frames) // 4) * side, 4 * side, 3)
    for i, pixels in enumerate(frames.values()):
        y, x = divmod(i, 4)
        shown = picture[y * side : (y + 1) * side, x * side : (x + 1) * side]
        small = shown.reshape(64, side // 64, 64, side // 64, 3).mean((1, 3))
        step = len(pixels) // 64
        wanted = pixels.reshape(64, step, 64, step, 3).mean((1, 3)) if step else pixels
        assert np.abs(small - wanted).mean() < 12, i


@pytest.mark.parametrize(
    ("asked", "code", "wanted"),
    [
        (None, 200, slice(None)),
        ("bytes=0-", 206, slice(None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=9-99999999999", 206, slice(9, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=9-3", 400, None),
        ("lines=1-2", 400, None),
        ("bytes=" + "9" * 5000 + "-", 400, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_parts_of_a_video(server, made, asked, code, wanted):
    whole = Path(si.open_library(made / "moments").videos[0][0]).read_bytes()
    status, headers, body = server.ask("/video/0", headers={"Range": asked} if asked else {})
    assert status == code
    if wanted is not None:
        assert body == whole[wanted] and headers["content-type"] == "video/mp4"
        assert headers["accept-ranges"] == "bytes" and headers["content-length"] == str(len(body))
    if code == 206:
        first = range(len(whole))[wanted][0]
        assert headers["content-range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"


def test_for_several_parts_the_whole_is_sent(server):
    whole = server.ask("/video/0")[2]
    ranges = ",".join(f"{i}-{i}" for i in range(0, 4000, 2))
    for asked in ("bytes=0-1,3-4", f"bytes={ranges[:15000]}"):
        status, headers, body = server.ask("/video/0", headers={"Range": asked})
        assert (status, body) == (200, whole) and "content-range" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/search?text=a", "/video/0", "/library", "/nothing"])
def test_nothing_can_be_written(server, method, path):
    status, headers, _ = server.ask(path, method, body=b"x" * 10)
    assert status == 405 and headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("LOCALHOST:9999", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("localhost:80:80", 421),
        ("localhost:x", 421),
        ("", 421),
        ("169.254.169.254", 421),
        ("0.0.0.0", 421),
    ],
)
def test_only_who_knows_its_name_is_answered(server, host, code):
    """A page elsewhere whose name was made to lead here has another Host."""
    for path in ("/", "/library", "/search?text=a", "/video/0", "/thumbnail/0"):
        assert server.ask(path, headers={"Host": host})[0] == code, path


def test_other_sites_pages_are_refused(server):
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        for path in ("/search?text=a", "/video/0", "/thumbnail/0", "/"):
            assert server.ask(path, headers=asked)[0] == 403
        asked["Sec-Fetch-Mode"] = "navigate"  # a link to the page may be followed, not to a video
        assert [server.ask(p, headers=asked)[0] for p in ("/", "/video/0")] == [200, 403]
    assert server.ask("/library", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_names_of_hosts():
    found = {t: host_of(t) for t in ("A.b:1", "[::1]", "[::1]:80", ":80", "a:", "a:999999", "ü")}
    assert [*found.values()] == ["a.b", "::1", "::1", None, None, None, None]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "nothing to search for"),
        ("text=", "blank"),
        ("text=%20", "blank"),
        ("not=a", "nothing to search for"),
        ("text=a&text=%FF", "cannot be read"),
        ("text", "cannot be read"),
        ("text=a&nothing=1", "parameter 'nothing' is unknown"),
        ("text=a::0", "behind :: stands a weight"),
        ("text=a::nan", "behind :: stands a weight"),
        ("text=a::1e999", "weight"),
        ("text=a&top=0", "top is 0"),
        ("text=a&top=201", "1 to 200"),
        ("text=a&top=1e3", "top is '1e3'"),
        ("text=a&top=%D9%A3", "whole number"),
        ("text=a&top=1&top=2", "top is given 2 times"),
        ("text=a&mug=1", "offers no scores of a Mug head"),
        ("text=a&mug=yes", "mug 'yes' is unknown"),
        ("text=a&since=yesterday", "is no date"),
        ("text=a&added_since=0", "is no date"),
        ("text=a&longer=long", "is no number of seconds"),
        ("text=a&shorter=-1", "--shorter is -1.0"),
        ("text=a&path=+", "blank"),
        ("like=-1", "has no row"),
        ("like=1e3", "has no row"),
        ("like=" + "9" * 900, "has no row"),
        ("like=%D9%A3", "has no row"),
        ("text=" + "a" * 1001, "1001 characters"),
        ("&".join(f"text={i}" for i in range(33)), "33 texts and examples"),
        ("&".join(f"text={i}" for i in range(400)), "cannot be read"),
        ("text=a&not=a", "cancel each other"),
        ("a" * 3000 + "=b", "is unknown"),
    ],
    ids=lambda value: value[:30],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(server, query, says):
    assert says in server.json(f"/search?{query}", 400)["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/video/../../etc/passwd", "/video/%2e%2e%2fetc%2fpasswd", "/video//etc/passwd",
        "/thumbnail/..%5c..%5cwin.ini", "/video/0%00.mp4", "/video/0/../1", "/video/file:///etc",
        "/page.js/../../../pyproject.toml", "/%2e%2e/serve.py", "/server.py", "/page.html",
        "/video/" + "9" * 400, "/video/-1", "/video/+1", "/video/1.0", "/video/%D9%A1",
        "/video/", "/video", "/thumbnail/0/0", "//evil.example/", "/.git/config", "/rows.db",
    ],
    ids=lambda path: path[:30],
)  # fmt: skip
def test_no_path_leads_to_a_file(server, path):
    status, _, body = server.ask(path)
    assert status == 404 and [*json.loads(body)] == ["error"]


def test_files_that_are_gone_or_changed_are_not_sent(place, session):
    clips = place / "clips"
    names = ("square_fades_in.mp4", "bar_grows.mp4", "bar_blinks.mp4", "cross_moves_left.mp4")
    gone, changed, touched, other = (row_of(place / "library", name) for name in names)
    (clips / "blue_square_fades_in.mp4").unlink()
    make_clip(clips / "green_bar_grows.mp4", frames=9)
    os.utime(clips / "cyan_bar_blinks.mp4", (1, 1))
    (clips / "red_cross_moves_left.mp4").unlink()
    os.mkfifo(clips / "red_cross_moves_left.mp4")
    with serving(place / "library", session) as server:
        for kind in ("video", "thumbnail"):
            assert "not there" in server.json(f"/{kind}/{gone}", 410)["error"]
            assert "changed" in server.json(f"/{kind}/{changed}", 410)["error"]
            assert server.ask(f"/{kind}/{touched}")[0] == 200, "its hash is the same"
            server.json(f"/{kind}/{other}", 410)
        os.utime(clips / "cyan_bar_blinks.mp4", (2, 2))
        size = (clips / "cyan_bar_blinks.mp4").stat().st_size
        (clips / "cyan_bar_blinks.mp4").write_bytes(b"x" * size)
        assert "changed" in server.json(f"/video/{touched}", 410)["error"]
        assert len(server.search(TEXT)["hits"]) == 10


def test_a_stranger_s_library_names_no_other_file(place, session):
    """Even where it knows the size and the date of a file, only videos are sent."""
    secret = place / "secret.txt"
    secret.write_text("the secret" * 100)
    status = secret.stat()
    name = '"><img src=x onerror=alert(1)>.mp4'
    shutil.copy(place / "clips" / "green_bar_grows.mp4", place / name)
    rows = {n: row_of(place / "library", n) for n in ("green_bar_grows.mp4", "cyan_bar_blinks.mp4")}
    with sqlite3.connect(place / "library" / ROWS) as db:
        for old, new, stat in (
            ("cyan_bar_blinks.mp4", secret, status),
            ("green_bar_grows.mp4", place / name, (place / name).stat()),
        ):
            db.execute(
                "UPDATE files SET path = ?, size = ?, mtime_ns = ? WHERE path = ?",
                (bytes(new), stat.st_size, stat.st_mtime_ns, bytes(place / "clips" / old)),
            )
    db.close()
    with serving(place / "library", session) as server:
        said = server.json(f"/video/{rows['cyan_bar_blinks.mp4']}", 410)
        assert said == {"error": "The file is not a video."}
        server.json(f"/thumbnail/{rows['cyan_bar_blinks.mp4']}", 410)
        assert server.ask(f"/video/{rows['green_bar_grows.mp4']}")[0] == 200
        found = server.ask("/search?text=a&top=10")
        assert found[1]["content-type"] == "application/json" and name in [
            hit["name"] for hit in json.loads(found[2])["hits"]
        ]


def test_rows_that_a_run_adds_are_found(place, session, monkeypatch):
    monkeypatch.setattr(held, "LOOK_S", 0.02)
    with serving(place / "library", session) as server:
        assert server.json("/library")["rows"] == 10
        make_clip(place / "clips" / "new.mp4", frames=30)
        si.embed_library(session, [place / "clips"], place / "library", workers=1)
        while server.json("/library")["rows"] != 11:
            pass
        row = row_of(place / "library", "new.mp4")
        assert server.search(like=row, top=1)["hits"][0]["name"] == "new.mp4"
        assert server.ask(f"/thumbnail/{row}")[0] == 200


def test_a_library_that_is_damaged_meanwhile_is_said(place, session, monkeypatch):
    monkeypatch.setattr(held, "LOOK_S", 0.02)
    said = []
    with serving(place / "library", session, say=said.append) as server:
        (place / "library" / "library.json").write_text("{}")
        while not (problem := server.json("/library")["problem"]):
            pass
        assert "has changed and cannot be read again" in problem
        assert len(server.search(TEXT)["hits"]) == 10, "it goes on with what was read"
    assert said == [f"warning: {problem}"]


def test_a_changed_vector_is_an_answer_and_not_the_end(place, session):
    path = place / "library" / VECTORS
    data = np.fromfile(path, "<f4")
    data[:] = np.nan
    data.tofile(path)
    with serving(place / "library", session) as server:
        assert "was changed after it was written" in server.search("a", code=500)["error"]
        assert server.json("/library")["rows"] == 10


def test_a_bug_is_logged_and_not_shown(server, monkeypatch, caplog):
    def broken(*given, **more):
        raise ZeroDivisionError("at /home/somebody")

    monkeypatch.setattr("stan_infer.library.server.app.question", broken)
    status, headers, body = server.ask("/search?text=a")
    assert status == 500 and HEADERS.items() <= headers.items() and b"somebody" not in body
    assert "this is a bug" in caplog.text


def test_addresses():
    assert all(map(is_local, ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.5", "home.example")))
    with bound("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of("0.0.0.0", listener) == f"http://127.0.0.1:{port}/"
    with bound("localhost", 0) as listener:
        assert address_of("localhost", listener).startswith("http://localhost:")


def test_a_port_that_is_taken_and_a_host_that_is_none():
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(si.InputError, match="--port 0 takes a free port"):
            with bound("127.0.0.1", other.getsockname()[1]):
                pass
    for host in ("192.0.2.1", "no.such.host.invalid", "a" * 300, ""):
        with pytest.raises(si.InputError, match="for 127.0.0.1"):
            with bound(host or "\0", 0):
                pass


@contextmanager
def program(place, *words):
    command = [sys.executable, "-m", "stan_infer", "serve", place / "moments", "--port=0", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*map(str, command)], cwd=MOTION, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of a process group of its own")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it(made, number):
    """Also while an answer is sent and a connection waits."""
    with program(made, "--json") as process:
        record = json.loads(process.stdout.readline())
        assert record["schema"] == "stan-infer/serve/1"
        port = int(record["url"].rpartition(":")[2].strip("/"))
        with socket.create_connection(("127.0.0.1", port)) as waits:
            waits.sendall(b"GET / HTTP/1.1\r\n")
            process.send_signal(number)
            out, err = process.communicate()
    assert process.returncode == 128 + number and not out
    assert err.splitlines() == [
        f"{'interrupted' if number == signal.SIGINT else 'ended by SIGTERM'}: nothing was written"
    ]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of a process group of its own")
def test_another_host_is_warned_of(made):
    with program(made, "--host", "0.0.0.0") as process:
        line = process.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ shows .*moments.*\n", line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert "there is no password" in err and process.returncode == 130


def test_nothing_is_left_behind(made, session):
    import threading

    before, decoding = {t.name for t in threading.enumerate()}, decoders()
    with serving(made / "moments", session) as server:
        server.ask("/thumbnail/1")
        assert decoders() - decoding or not Path("/proc/self").exists()
    left = {t.name for t in threading.enumerate()} - before
    assert not {name for name in left if not name.startswith("AnyIO")}, left
    assert not decoders() - decoding


def decoders():
    """Those of this process, of other tests' servers too."""
    found = {pid: Path(f"/proc/{pid}/cmdline") for pid in children(os.getpid())}
    return {pid for pid, p in found.items() if p.exists() and b"decode_child" in p.read_bytes()}
