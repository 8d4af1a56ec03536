"""The HTML page: everything inside it, strangers' names escaped, and it fits a phone's screen."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from stan_infer.benchmarking.page import render_page, write_page
from stan_infer.benchmarking.rows import ratio_in_words
from stan_infer.benchmarking.starvation import add_doubts
from stan_infer.benchmarking.timing import summarise
from stan_infer.errors import InputError

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


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
    for title in ("Latency against batch", "Throughput against frames", "Share of peak GEMM"):
        assert title in page
    assert "R@1 against latency" in page and "Error against latency" in page
    assert "From file to scores" in page and "engine trt is not here" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert not [i for i in re.findall(r"url\(#([^)]+)\)", page) if i not in ids]


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
    assert "Times the baseline" not in page and "Latency against batch" in page
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


needs_browser = pytest.mark.skipif(
    not BROWSER and not os.environ.get("STAN_INFER_REQUIRE_BROWSER"),
    reason="needs a headless browser: apt install chromium",
)


def on_screen(page, folder, width):
    """Widths in pixels of a page, and of its charts, in a window of this width."""
    assert BROWSER
    probe = (
        "<script>const r = e => e.getBoundingClientRect(), d = document.body.dataset;"
        "d.page = document.documentElement.scrollWidth; d.inner = innerWidth;"
        "const all = [...document.querySelectorAll('svg')].map(r);"
        "d.svg = Math.max(...all.map(e => e.right)); d.least = Math.min(...all.map(e => e.width));"
        "</script></body>"
    )
    (folder / "page.html").write_text(page.replace("</body>", probe))
    run = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    run += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    run += ["--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    run += [f"--window-size={width},900", "--dump-dom", f"file://{folder / 'page.html'}"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body, done.stderr[-2000:]
    return {k: float(v) for k, v in re.findall(r'data-(\w+)="([\d.]+)"', body[0])}


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_of_a_phone_and_of_a_desk(tmp_path, width):
    seen = on_screen(render_page("bench", rows(), STAGES, EVALS), tmp_path, width)
    assert seen["page"] <= seen["inner"]
    assert seen["svg"] <= seen["inner"] and seen["least"] > 250
