"""examples/web in headless Chromium: Python's numbers, nothing leaves the machine, bad input."""

import base64
import functools
import html.entities
import http.server
import json
import os
import shutil
import subprocess
import threading
import unicodedata
from contextlib import contextmanager

import numpy as np
import pytest

import stan_infer as si
from stan_infer.network.model import Stan, init_random
from stan_infer.video.clip import read_clip_info, sample_indices
from stan_infer.video.pyav_reader import read_pyav
from stan_infer.video.spec import ClipSpec
from tests.conftest import ROOT, edit_json, tiny_config
from tests.cpp.test_client import PLAIN, mixed
from tests.examples.chromium import PROGRAM, Page
from tests.exported import exported, rewrite
from tests.video import zoo

WEB = ROOT / "examples" / "web"
MOTION = ROOT / "examples" / "motion"
CLIPS = sorted((MOTION / "clips").glob("*.mp4"))
TEXTS = [
    "a red cross moves left",
    "a shape moves right",
    "café &amp; naïve – 日本語 👩‍👩‍👧",
    "x " * 60,
]
NASTY = '<img src=x onerror="document.title=1">'


def unavailable(reason):
    """Skip, or fail where STAN_INFER_REQUIRE_BROWSER=1 says that nothing may be missing."""
    if os.environ.get("STAN_INFER_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page with its packages, as `npm ci` installs them, and the demo's folder."""
    for program, package in ((PROGRAM, "chromium"), (shutil.which("npm"), "nodejs npm")):
        if not program:
            unavailable(f"needs a headless browser and npm: apt install {package}")
    folder = tmp_path_factory.mktemp("site") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "model"))
    install = "npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier".split()
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        unavailable(f"npm ci: {done.stderr[-500:]}")
    (folder / "model").symlink_to(motion_folder())
    return folder


@functools.cache
def motion_folder():
    labels = tuple((MOTION / "labels.txt").read_text().splitlines())
    return exported(si.load_model(MOTION / "motion.safetensors"), labels=labels)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


class Generous(Quiet):
    """Another host that answers whatever it is asked for."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        kind = "text/javascript" if self.path.endswith(".js") else "image/svg+xml"
        body = b"" if self.path.endswith(".js") else (WEB / "icon.svg").read_bytes()
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(site):
    """Where a plain static server shows the site."""
    with serving(functools.partial(Quiet, directory=str(site))) as host:
        yield f"http://{host}/"


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    with Page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser, address):
    """The page, opened anew, with the demo's folder."""
    browser.open(address)
    settle(browser)
    return browser


def state(page, code):
    """A value that the page's modules have; `s` is its state."""
    return page.js(f"import('./main.js').then(async ({{ state: s }}) => ({code}))")


def settle(page):
    """Wait until the page has done what it was asked for."""
    page.wait("import('./main.js').then(m => m.idle()).then(() => true)")


def message(page):
    return page.js("document.getElementById('message').textContent")


def give(page, *paths, into="#files"):
    # A browser lists a folder's files before it tells the page.
    once = "addEventListener('change', () => done(true), { once: true, capture: true })"
    page.js(f"window.told = new Promise(done => {once}); true")
    page.give_files(into, *paths)
    page.js("window.told")
    settle(page)


def choose(page, folder):
    """Open another exported folder."""
    give(page, folder, into="#folder")
    return message(page)


def ask(page, texts, labels=False):
    page.js(f"document.getElementById('texts').value = {json.dumps(chr(10).join(texts))}")
    page.js(f"document.getElementById('labels').checked = {json.dumps(labels)}")
    page.js("document.querySelector('#ask button').click()")
    settle(page)


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def packed(code):
    """JavaScript that gives a typed array as base64."""
    return (
        f"(a => btoa(Array.from(new Uint8Array(a.buffer, a.byteOffset, a.byteLength), "
        f"c => String.fromCharCode(c)).join('')))({code})"
    )


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def session():
    with si.open_session(motion_folder(), engine="ort") as opened:
        yield opened


def test_frames_embeddings_and_scores_are_those_of_python(page, session):
    ask(page, TEXTS)
    give(page, *CLIPS)
    assert message(page) == "" and state(page, "s.clips.length") == len(CLIPS)
    for i, path in enumerate(CLIPS):
        info = read_clip_info(path, ClipSpec.of(session.config))
        assert state(page, f"s.clips[{i}].indices") == info.indices.tolist()
        told = state(page, f"[s.clips[{i}].total, s.clips[{i}].colours]")
        assert told == [info.total_frames, "same"]
        pixels = numbers(state(page, packed(f"s.clips[{i}].pixels")), np.uint8)
        np.testing.assert_array_equal(pixels.reshape(info.pixels.shape), info.pixels)
        found = numbers(state(page, packed(f"s.clips[{i}].video")), np.float32)
        assert cosine(found, session.embed_video(info.pixels[None])[0]) > 0.99999
        wanted = session.score(TEXTS, info.pixels[None])[:, 0]
        np.testing.assert_allclose(state(page, f"s.clips[{i}].scores"), wanted, atol=1e-5)
    shown = page.js(
        "[...document.querySelector('tbody, table').rows].slice(1).map(r => r.innerText)"
    )
    best = [TEXTS[i] for i in np.argsort(-wanted)]
    assert [s.split("\n")[0] for s in shown] == [t.strip() for t in best]


def test_pixels_of_python_give_the_embedding_of_python(page, session):
    clip = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    data = json.dumps(base64.b64encode(clip.tobytes()).decode())
    given = f"Uint8Array.from(atob({data}), c => c.charCodeAt(0))"
    found = state(page, f"s.engine.embed({given}).then(e => {packed('e.video')})")
    assert cosine(numbers(found, np.float32), session.embed_video(clip[None])[0]) > 0.99999
    names = state(page, "s.folder.labels.names")
    assert names == (MOTION / "labels.txt").read_text().splitlines()


def ids_of(page, texts):
    """Per text its ids; of one that is refused the message."""
    one = "t => { try { return s.folder.tokenizer.encode(t) } catch (e) { return e.message } }"
    return state(page, f"{json.dumps(list(texts))}.map({one})")


def compare_ids(page, texts):
    """No text may get other ids than in Python; returns those that are refused."""
    got, refused = ids_of(page, texts), []
    for text, ids, row in zip(texts, got, si.tokenize(texts, 77), strict=True):
        if isinstance(ids, str):
            assert "wrong character set" in ids, (ascii(text), ids)
            refused.append(text)
        else:
            cut = ids if len(ids) <= 77 else [*ids[:76], 49407]
            assert cut == row[: len(cut)].tolist() and not row[len(cut) :].any(), ascii(text)
    return refused


def test_ids_of_difficult_texts(page):
    assert len(compare_ids(page, PLAIN)) <= 1
    names = sorted(html.entities.html5)
    texts = [f"x &{n} y" for n in names] + [f"a&{n.upper()}b" for n in names]
    texts += [f"&#{n};z &#x{n:X}" for n in range(300)]
    assert len(compare_ids(page, texts)) < 20
    pool = [c for text in PLAIN for c in text[:60]] + [
        "&eacute;",
        "&EACUTE;",
        "n't",
        "'LL",
        "&#39;",
    ]
    assert len(compare_ids(page, mixed(pool, 3000, 14))) < 100
    assert compare_ids(page, ["x" * 10_000, "constructor __proto__", "5 °C – “café” … 20 €"]) == []
    (wrong, long) = ids_of(page, ["cafÃ© â€™", "x" * 10_001])
    assert "wrong character set" in wrong and "more than 10000 characters" in long


def test_ids_of_every_character_of_the_first_plane(page):
    """But those that this Python does not know: the browser may know a newer Unicode."""
    points = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    known = [c for c in points if unicodedata.category(c) != "Cn"]
    assert len(compare_ids(page, [f"a{c}b {c}" for c in known])) < 50


LABELS = ("a dog runs", "a cat sits", NASTY)


@functools.cache
def mug_folder(head):
    sizes = {"vocab_size": 49408, "context_positions": 77, "context_length": 32, "embed_dim": 64}
    model = init_random(Stan(tiny_config(head=head, **sizes)), seed=1).eval()
    return exported(model, labels=LABELS)


@pytest.mark.parametrize("head", ["mug", "mug_frame_token"])
def test_mug_heads_and_their_labels(page, head):
    folder = mug_folder(head)
    assert choose(page, folder) == ""
    ask(page, TEXTS, labels=True)
    give(page, CLIPS[0])
    with si.open_session(folder, engine="ort") as session:
        wanted = session.score([*TEXTS, *LABELS], session.read_clip(CLIPS[0])[None])[:, 0]
    np.testing.assert_allclose(state(page, "s.clips[0].scores"), wanted, atol=2e-5)
    assert NASTY in page.js("document.querySelector('table').innerText")
    assert page.js("document.querySelectorAll('#results img').length") == 0


def frames_of(page, path, site, frames=8):
    """The frames that the page reads of a file, as read_pyav gives them; or its message."""
    shutil.copy(path, site / "clip")
    image = f"({{ w: k.width, h: k.height, d: {packed('k.rgb')} }})"
    code = (
        "(async () => { const { readFrames } = await import('./video.js');"
        "const file = await (await fetch('./clip', { cache: 'no-store' })).blob();"
        f"try {{ const f = await readFrames(file, {frames}, k => {image}); return f; }}"
        "catch (e) { return e.message; } })()"
    )
    return page.js(code)


SAME = """h264.mp4 h264.mov h264.mkv h264.ts h264open.mp4 h264_709.mp4 h264_full.mp4 h264_422.mp4
h264_rgb.mkv h264_interlaced.mp4 h264_66x50.mp4 vp8.webm vp8_altref.webm vp9.webm vp9_altref.webm
av1.mp4 turned_90.mp4 turned_270.mp4 mirrored.mp4 transposed.mp4 cut_h264_mp4.mp4 cut_end.mp4
vfr.mp4 fragments.mp4 negative_cts.mp4 one.mp4 sound_first.mp4 two_videos.mp4""".split()
NEAR = """h264_10bit.mp4 h264_127x95.mkv h264_422_10bit.mkv h264_444.mp4 vp9_10bit.webm vp9_444.webm
av1_10bit.mkv""".split()
LEVELS = 4
# Files whose frames cannot be numbered or decoded here, and what the page says.
REFUSED = {
    "joined_h264.ts": "two frames of one time",
    "joined_shifted.ts": "its times fall back",
    "bytes_h264_ts.ts": "does not begin with a key frame",
    "bytes_h264open_ts.ts": "begins within a group of pictures",
    "cut_h264open_mkv.mp4": "the browser cannot decode it",
    "mpeg4.mp4": "its codec is not known",
    "h264.avi": "no video that this page reads",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if zoo.missing():
        unavailable(zoo.missing())
    return zoo.Zoo(tmp_path_factory.mktemp("zoo"))


def test_frames_of_many_kinds_of_file(page, site, made):
    for name in [*SAME, *NEAR]:
        found = frames_of(page, made.file(name), site)
        wanted = read_pyav(made.file(name), lambda n: sample_indices(n, 8), lambda image: image)
        assert not isinstance(found, str), (name, found)
        assert (found["indices"], found["total"]) == (wanted.indices.tolist(), wanted.total_frames)
        assert found["colours"] == ("same" if name in SAME else "near"), name
        for number, image in zip(found["indices"], found["kept"], strict=True):
            pixels = numbers(image["d"], np.uint8).reshape(image["h"], image["w"], 3)
            off = np.abs(pixels.astype(int) - wanted.images[number]).max()
            assert off <= (0 if name in SAME else LEVELS), (name, number, off)


@pytest.mark.parametrize("name", REFUSED)
def test_no_frames_are_guessed(page, site, made, name):
    assert REFUSED[name] in frames_of(page, made.file(name), site)


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ([(40, 0, 1), (40, 1024, 1)], "its edit list puts several parts together"),
        ([(80, 0, 0.5)], "its edit list puts several parts together"),
    ],
)
def test_edit_lists_that_are_not_followed(page, site, made, tmp_path, edits, told):
    data = made.file("h264.mp4").read_bytes()
    at = data.index(b"elst") - 4
    size = int.from_bytes(data[at : at + 4])
    rows = b"".join(
        d.to_bytes(4) + m.to_bytes(4) + int(rate * 65536).to_bytes(4) for d, m, rate in edits
    )
    new = (16 + len(rows)).to_bytes(4) + b"elst" + bytes(4) + len(edits).to_bytes(4) + rows
    data = bytearray(data[:at] + new + data[at + size :])
    for box in (b"edts", b"trak", b"moov"):
        place = data.rindex(box, 0, at) - 4 if box != b"moov" else data.index(box) - 4
        length = int.from_bytes(data[place : place + 4]) + len(new) - size
        data[place : place + 4] = length.to_bytes(4)
    (tmp_path / "edited.mp4").write_bytes(data)
    assert told in frames_of(page, tmp_path / "edited.mp4", site)


def test_nothing_is_asked_of_another_host(page, address):
    ask(page, TEXTS)
    give(page, CLIPS[0])
    asked = page.addresses()
    assert len(asked) > 10 and all(a.startswith(address) for a in asked), asked
    with serving(Generous) as to:
        for code in (
            f"fetch('http://{to}/x')",
            f"import('http://{to}/x.js')",
            f"new Promise((done, fail) => Object.assign(new Image(), "
            f"{{ onload: done, onerror: fail, src: 'http://{to}/x.svg' }}))",
            f"new Promise((done, fail) => {{ new WebSocket('ws://{to}/').onerror = fail; }})",
        ):
            code = f"Promise.resolve({code}).then(() => 'sent', () => 'refused')"
            assert page.js(code) == "refused"
    assert Generous.asked == []
    told = [e["params"]["entry"]["text"] for e in page.events if e["method"] == "Log.entryAdded"]
    assert sum("Content Security Policy" in t for t in told) >= 4


def test_which_engine_runs_is_said(page):
    note = page.js("document.getElementById('engine-note').innerText")
    webgpu = page.js("document.querySelector('[value=webgpu]').disabled")
    engine = page.js("document.documentElement.dataset.engine")
    assert engine == page.js("document.querySelector('[name=engine]:checked').value")
    assert engine == state(page, "s.engine.name")
    if webgpu:  # no browser of these tests has a GPU
        assert engine == "wasm" and note.startswith("WebAssembly, because this browser")


def test_webgpu_gives_the_same(address, session, tmp_path):
    """On Chromium's software device: no GPU is here."""
    device = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    with Page(tmp_path, *device, "--enable-features=Vulkan") as page:
        page.open(address)
        settle(page)
        if not page.js("navigator.gpu.requestAdapter().then(Boolean)"):
            unavailable("this Chromium has no software device for WebGPU")
        ask(page, TEXTS)
        give(page, CLIPS[0])
        assert page.js("document.documentElement.dataset.engine") == "webgpu"
        pixels = session.read_clip(CLIPS[0])[None]
        found = numbers(state(page, packed("s.clips[0].video")), np.float32)
        assert cosine(found, session.embed_video(pixels)[0]) > 0.9999
        wanted = session.score(TEXTS, pixels)[:, 0]
        np.testing.assert_allclose(state(page, "s.clips[0].scores"), wanted, atol=1e-3)
        page.js("document.querySelector('[value=wasm]').click()")  # the clip is embedded again
        settle(page)
        assert state(page, "[s.engine.name, s.clips.length]") == ["wasm", 1]
        np.testing.assert_allclose(state(page, "s.clips[0].scores"), wanted, atol=1e-5)


def test_bad_clips_are_a_message_each(page, tmp_path):
    movie = CLIPS[0].read_bytes()
    # A box that says it is the file's index and the largest that there can be.
    huge = movie[:40] + b"\0\0\0\1moov" + (2**62).to_bytes(8, "big") + movie[40:]
    bad = {
        "empty.mp4": b"",
        "text.mp4": b"a text" * 100,
        "cut.mp4": movie[: len(movie) // 2],
        "head.mp4": movie[:64],
        "huge.mp4": huge,
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n",
        f"{NASTY.replace('/', '')}.mp4": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    ask(page, TEXTS)
    give(page, *(tmp_path / name for name in bad), CLIPS[0])
    told = page.js("[...document.querySelectorAll('#results .problem')].map(p => p.innerText)")
    assert len(told) == len(bad), told
    for name, line in zip(reversed(bad), told, strict=True):
        assert line.startswith(f"{name}: ") and "\n" not in line and len(line) < 400
    assert message(page) == "" and state(page, "s.clips[0].scores.length") == len(TEXTS)
    assert page.js("document.title") == "Score clips against texts"


def graph(manifest, role):
    return next(g for g in manifest["graphs"] if g["role"] == role)


def named(name):
    def change(manifest):
        manifest["files"][name] = manifest["files"].pop("video.onnx")
        graph(manifest, "video")["file"] = name

    return change


# What is written into the manifest, and what the page says.
CHANGED = {
    "leads out": (named("../video.onnx"), 'does not list the file "../video.onnx"'),
    "script": (named(NASTY), "does not list the file"),
    "large": (lambda m: m["files"]["video.onnx"].update(bytes=10**15), "bytes; this page takes"),
    "none": (lambda m: m["files"].clear(), "does not list the file"),
    "rule": (lambda m: m["preprocess"]["sampling"].update(rule="i"), "preprocess.sampling is not"),
    "clean": (lambda m: m["text"].update(clean=["lower case"]), "text is not what this page knows"),
    "frames": (
        lambda m: graph(m, "video")["dims"].update(frames=[1, 2]),
        "does not take the model's 8",
    ),
    "twice": (lambda m: m["graphs"].append(graph(m, "video")), "two graphs for video"),
    "hash": (
        lambda m: m["files"]["video.onnx"].update(sha256="0" * 64),
        "not the file of manifest",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_folder_whose_manifest_was_changed(page, tmp_path, case):
    change, told = CHANGED[case]
    folder = shutil.copytree(motion_folder(), tmp_path / "folder")
    edit_json(folder / "manifest.json", change)
    assert told in choose(page, folder)
    assert page.js("document.getElementById('model').textContent") == "No model is open."
    give(page, CLIPS[0])
    assert message(page) == "open a model first"


# Files that are written anew, with a manifest that has their hashes.
REPLACED = {
    "video.onnx": (b"no graph", "video.onnx does not open"),
    "tokenizer.json": (b'{"model": 1}', "tokenizer.json is not as export writes it"),
    "labels.npz": (
        b"PK\5\6" + bytes(6) + b"\1\0" + bytes(4) + b"\xff" * 4 + bytes(2),
        "labels.npz cannot be read",
    ),
    "labels.txt": (f"{NASTY}\n".encode(), "not what the 1 labels need"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_folder_with_another_file(page, tmp_path, name):
    content, told = REPLACED[name]
    folder = shutil.copytree(motion_folder(), tmp_path / "folder")
    (folder / name).write_bytes(content)
    rewrite(folder)
    assert told in choose(page, folder)


def test_a_manifest_that_is_too_large_or_none(page, tmp_path):
    for content, told in ((b"[" * (2**20 + 1), "more than 1048576 bytes"), (b"{", "is no JSON")):
        (tmp_path / "manifest.json").write_bytes(content)
        assert told in choose(page, tmp_path)


def test_no_value_of_a_manifest_is_a_bug(page, site):
    """Every value is replaced by others: the folder opens, or there is a message."""
    (site / "tiny").symlink_to(mug_folder("mug"))
    bad = page.js("""(async () => {
      const [{ openFolder, filesAt }, { InputError }] =
        await Promise.all([import('./folder.js'), import('./errors.js')]);
      const read = filesAt(new URL('./tiny/', document.baseURI));
      const files = new Map();
      const kept = async (name, most) => {
        if (!files.has(name)) files.set(name, await read(name, most));
        return files.get(name);
      };
      const text = new TextDecoder().decode(await read('manifest.json', 1e6));
      const paths = [];
      const walk = (value, path) => {
        paths.push(path);
        if (typeof value === 'object' && value) for (const k in value) walk(value[k], [...path, k]);
      };
      walk(JSON.parse(text), []);
      const bad = [];
      for (const path of paths) for (const value of [null, 'x', -1, 1e99, [], {}, [null], true]) {
        const root = { top: JSON.parse(text) };
        const at = ['top', ...path];
        at.slice(0, -1).reduce((o, k) => o[k], root)[at.at(-1)] = value;
        const changed = new TextEncoder().encode(JSON.stringify(root.top));
        const reader = async (name, most) => {
          // Building a tokenizer takes time, and only labels are read after it.
          if (name === 'tokenizer.json' && path[0] !== 'labels') throw new InputError('enough');
          return name === 'manifest.json' ? changed : kept(name, most);
        };
        try { await openFolder(reader); } catch (e) {
          if (!(e instanceof InputError)) bad.push([at.join('.'), JSON.stringify(value), e.stack]);
        }
      }
      return [paths.length, bad];
    })()""")
    assert bad[0] > 100 and bad[1] == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_a_desk(browser, address, dark):
    for width in (390, 1280):
        browser.dark(dark=dark)
        browser.open(address, width)
        settle(browser)
        ask(browser, [*TEXTS, "w" * 300])
        give(browser, CLIPS[0])
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        assert browser.js("document.querySelector('canvas').getBoundingClientRect().width") >= 60
        assert contrast(browser) >= 4.5


def contrast(page):
    """The least contrast of a text with the page's ground, as WCAG defines it."""
    colours = page.js(
        "((all, of) => [...all.map(e => of(e).color), of(document.body).backgroundColor])"
        "([...document.querySelectorAll('p, h1, h2, h3, td, th, label, li')], getComputedStyle)"
    )

    def light(colour):
        values = [int(x) / 255 for x in colour[4:-1].split(",")]
        line = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in values]
        return float(np.dot(line, (0.2126, 0.7152, 0.0722)))

    *inks, paper = (light(c) for c in colours)
    return min((max(i, paper) + 0.05) / (min(i, paper) + 0.05) for i in inks)


def test_it_is_used_with_the_keyboard_and_read_aloud(page):
    unnamed = page.js(
        "[...document.querySelectorAll('input, textarea, button')]"
        ".filter(e => !(e.labels?.length || e.innerText)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    give(page, CLIPS[0])
    page.js("document.getElementById('texts').focus()")
    for letter in "a dog":
        page.press(letter, letter)
    reached = set()
    for _ in range(4):
        page.press("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.type"))
        if page.js("document.activeElement.type") == "submit":
            page.press("Enter", "\r")
            settle(page)
    assert {"labels", "submit", "files"} <= reached
    assert state(page, "s.clips[0].names[0]") == "a dog"
    names = page.js(
        "[...document.querySelectorAll('canvas')].map(c => c.getAttribute('aria-label'))"
    )
    assert names[0] == "frame 0, at 0.00 s" and len(names) == 8
