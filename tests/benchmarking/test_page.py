"""The HTML page: everything inside it, strangers' names escaped, and it fits a phone's screen."""

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from stan_infer.benchmarking.page import render_page, write_page
from stan_infer.benchmarking.rows import ratio_in_words
from stan_infer.benchmarking.starvation import add_doubts
from stan_infer.benchmarking.timing import summarise
from stan_infer.errors import InputError
from tests.examples.chromium import PROGRAM, needs_browser

SAME = {
    **{"schema": "stan-infer/bench/1", "warmup": 2, "threads": 2, "date": "2026-01-01"},
    **{"ceiling_gflop_per_s": 90.0, "ceiling_by": "onnxruntime 1536x1536x1536"},
    "machine": {"cpu": "A <b>CPU</b>", "cores": 2, "system": "Linux x86_64"},
}


def rows():
    rng = np.random.default_rng(0)
    found = []
    for b in (1, 4, 16):
        for t in (8, 16):
            base = 100 * b * t * rng.uniform(0.9, 1.1, 20)
            for engine, precision, gain in (
                ("eager", "fp32", 1.0),
                ("ort", "fp32", 1.25),
                ("openvino", "bf16", 2.3),
            ):
                ms = base / gain * (1 if gain == 1 else rng.uniform(0.97, 1.03, 20))
                measured = summarise(ms, base, clips=b, flops=t * 10**10)
                row = {"engine": engine, "precision": precision, "batch": b, "frames": t}
                row |= {"share_of_ceiling": 0.7 * gain, "peak_host_mib": 900.0 / gain}
                row |= {"max_rel_error": {1.0: 0.0, 1.25: 1e-6, 2.3: 1e-2}[gain]}
                told = ["unstable: p95 is 1.4 times the median"] if b == 16 else []
                found.append({**SAME, **row, **measured, "diagnosis": told})
    found.append({**found[0], "engine": "trt", "refused": "engine trt is not here"})
    return found


STAGES = [
    {
        **{"engine": "ort", "precision": "fp32", "frames": 8, "videos": 3, "scored_texts": 100},
        **{"decode_ms_p50": 40.0, "embed_ms_p50": 900.0, "score_ms_p50": 0.1},
        **{"total_ms_p50": 940.1, "diagnosis": []},
    }
]
EVALS = [
    {
        "session": {"engine": engine, "precision": precision},
        "figures": {"text_to_video": {"R@1": value}},
    }
    for engine, precision, value in (("ort", "fp32", 46.9), ("openvino", "bf16", 46.7))
]


class Tags(HTMLParser):
    """Attributes that could fetch something, and whether every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.fetching, self.names = [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        if tag not in ("meta", "br", "img", "path", "use"):
            self.open.append(tag)
        for name, value in attributes:
            # SVG's own references stay inside the page; namespaces are names, not addresses.
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.fetching.append((tag, name, value))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing():
    page = render_page("bench of <script>alert(1)</script>", rows(), STAGES, EVALS)
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.fetching == []
    assert "script" not in tags.names and "b" not in tags.names
    assert tags.names.count("svg") == 6
    for title in (
        "Latency against batch",
        "Throughput against frames",
        "Share of peak GEMM",
        "Speed, B",
    ):
        assert title in page
    assert "Speed, B" in page and "R@1 against latency" in page and "Error against latency" in page
    assert "From file to scores" in page and "engine trt is not here" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert not [i for i in re.findall(r"url\(#([^)]+)\)", page) if i not in ids]


def test_names_that_stay_in_one_line_are_so_outside_of_charts_only():
    evals = [{**e, "figures": {"videos": {"top-1": 50.0}}} for e in EVALS]
    page = render_page("with --threads", rows(), [], evals)
    assert "with <span class=whole>--threads</span></h1>" in page
    assert "<title>with --threads</title>" in page
    assert ">top-1 against latency, B = 1</text>" in page


def test_many_remarks_are_folded_up():
    few = [r for r in rows() if r["frames"] == 8]
    assert "<details>" not in render_page("t", few, [], [])
    assert "<details><summary>7 remarks on rows</summary>" in render_page("t", rows(), [], [])


def test_one_batch_and_one_number_of_frames_are_bars():
    page = render_page("t", [r for r in rows() if r["batch"] == 1 and r["frames"] == 8], [], [])
    assert "Latency, B = 1, T = 8" in page
    assert "against batch" not in page and "Throughput against" not in page


def test_figures_in_the_page_are_those_of_the_rows():
    page = render_page("t", rows(), [], [])
    for row in rows()[:-1]:
        ms = row["latency_ms_p50"]
        assert f"<td>{ms:.4g}</td>" in page if ms < 1000 else f"<td>{ms:.0f}</td>" in page


def starved(*engines):
    """The rows, as if other work had the CPUs of these engines."""
    found = rows()
    for row in found[:-1]:
        told = ["starved: its threads got no CPU"] if row["engine"] in engines else []
        row |= {"starved": told, "others_share": 0.6, "load_before": 3.0, "load_after": 4.0}
    return add_doubts(found)


def test_a_starved_row_has_no_ratio_and_no_place_in_a_plot():
    page = render_page("t", starved("ort"), [], [])
    plots = "".join(re.findall("<svg.*?</svg>", page, re.DOTALL))
    assert "openvino bf16" in plots and "ort fp32" not in plots
    assert page.count("<td>starved</td>") == 6
    assert "6 of 18 rows are starved" in page and "They are left out of the plots" in page
    assert "CPU time that other work had meanwhile: 60 %; load 3.0 before, 4.0 after" in page
    for row in rows()[:-1]:
        ratio = f"<td>{ratio_in_words(row)}</td>"
        assert (ratio in page) == (row["engine"] != "ort")


def test_without_its_baseline_no_ratio_is_known_and_without_all_there_is_no_plot():
    page = render_page("t", starved("eager"), [], [])
    assert "Speed, B" not in page and "Latency against batch" in page
    assert page.count("<td>unknown</td>") == 12 and not re.search(r"\d\.\d+x", page)
    page = render_page("t", starved("eager", "ort", "openvino"), STAGES, EVALS)
    assert "<svg" not in page and page.count("<td>starved</td>") == 18


def test_it_is_written_whole_and_spares_other_folders(tmp_path):
    write_page(tmp_path / "report", "t", rows(), [], [])
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["index.html", "rows.jsonl"]
    lines = (tmp_path / "report" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(rows()))
    write_page(tmp_path / "report", "t", rows(), [], [])
    (tmp_path / "report" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds mine.txt"):
        write_page(tmp_path / "report", "t", rows(), [], [])
    with pytest.raises(InputError, match="nothing was measured"):
        render_page("t", [{**rows()[0], "refused": "x"}], [], [])


def browser(folder, *options):
    """Run the browser without a window; return what it wrote."""
    assert PROGRAM
    run = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    run += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    run += ["--disable-sync", f"--user-data-dir={folder / 'profile'}", *options]
    return subprocess.run(run, capture_output=True, text=True, timeout=120)


def on_screen(page, folder, width, *options):
    """What is seen of a page in a window of this width, in pixels.

    page: width of all; inner: of the window; figure: right end of the charts' frames; least: width
    of the narrowest chart; cut: texts of charts that leave their chart; table: how much wider than
    its frame a table is; paper, ink: brightness of the background and of the letters in charts.
    """
    probe = """<script>
    const r = e => e.getBoundingClientRect(), d = document.body.dataset;
    const all = name => [...document.querySelectorAll(name)];
    const light = (e, what) => Math.max(...getComputedStyle(e)[what].match(/\\d+/g).slice(0, 3));
    d.page = document.documentElement.scrollWidth; d.inner = innerWidth;
    d.figure = Math.max(...all('figure').map(e => r(e).right));
    d.least = Math.min(...all('svg').map(e => r(e).width));
    d.table = Math.max(...all('.wide').map(e => e.scrollWidth - e.clientWidth));
    d.cut = all('svg text').filter(e => {
      const t = r(e), s = r(e.ownerSVGElement);
      return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1
        || t.bottom > s.bottom + 1; }).length;
    d.paper = light(document.body, 'backgroundColor');
    d.ink = light(document.querySelector('svg text'), 'fill');
    </script></body>"""
    (folder / "page.html").write_text(page.replace("</body>", probe))
    size = f"--window-size={width},900"
    done = browser(folder, *options, size, "--dump-dom", f"file://{folder / 'page.html'}")
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body, done.stderr[-2000:]
    return {k: float(v) for k, v in re.findall(r'data-(\w+)="([\d.]+)"', body[0])}


DARK, LIGHT = ([f"--blink-settings=preferredColorScheme={n}"] for n in (0, 1))


def fits(seen):
    """Assert that nothing of a page is cut or too small in its window."""
    assert seen["page"] <= seen["inner"] and seen["figure"] <= seen["inner"]
    assert seen["least"] > 250 and seen["cut"] == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_of_a_phone_and_of_a_desk(tmp_path, width):
    seen = on_screen(render_page("bench", rows(), STAGES, EVALS), tmp_path, width)
    fits(seen)
    assert (seen["table"] == 0) == (width == 1280), "the table scrolls on a phone only"


@needs_browser
def test_it_is_dark_where_the_reader_wants_that(tmp_path):
    page = render_page("bench", rows(), STAGES, EVALS)
    seen = on_screen(page, tmp_path, 1280, *LIGHT)
    assert seen["paper"] > 240 and seen["ink"] < 60
    seen = on_screen(page, tmp_path, 1280, *DARK)
    assert seen["paper"] < 60 and seen["ink"] > 200
