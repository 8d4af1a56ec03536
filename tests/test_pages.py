"""README.md and docs/: every command and block of Python runs on the demo; the site has no warning.

A block `sh` has commands that run one after another in a folder with the demo's files, one folder
for each page. In a block `console` a command stands behind "$ ", and what it prints follows. Blocks
`python` run in that folder, too. Plain blocks need a GPU, a data set or an installation, and are
not run; but their commands and options exist.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from stan_infer.cli.app import app
from tests.conftest import ROOT, python, quicken, quieten
from tests.examples.chromium import Page, needs_browser

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "console", "python")
COLUMNS = 80  # of the terminal on which all tables must fit


def blocks(page) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, content."""
    return parted(page.read_text())


def parted(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text: language, content."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language or "text", content) for language, content in found]


def joined(text: str) -> str:
    """A block whose commands stand in one line each, without the "\\" at the ends of lines."""
    return re.sub(r" *\\\n *", " ", text)


def commands(text: str) -> list[list[str]]:
    """The words of the stan-infer commands in a block, without what stands behind "#"."""
    lines = expanded(joined(text)).splitlines()
    parted = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in parted if words[:1] == ["stan-infer"]]


def expanded(text: str) -> str:
    """The block with the values of the shell variables that its lines NAME=$(...) set."""
    for name, value in re.findall(r"^(\w+)=(\$\(.*\))$", text, re.MULTILINE):
        done = subprocess.run(["bash", "-c", f"echo {value}"], stdout=subprocess.PIPE, check=True)
        text = text.replace(f"${name}", done.stdout.decode().strip())
    return text


def invoke(words: list[str]):
    """Run a command in this process; what stands behind ">" is the file that takes its results."""
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    done = CliRunner(env={"COLUMNS": str(COLUMNS)}).invoke(app, words)
    assert done.exit_code == 0, (words, done.exit_code, done.exception, done.stderr[-2000:])
    if target:
        with open(target, "w") as file:
            file.write(done.stdout)
    elif "--json" not in words:
        assert [line for line in done.stdout.splitlines() if len(line) > COLUMNS] == []
    return done.stdout


def alike(got: str, wanted: str) -> bool:
    """Whether two outputs have the same words; numbers may differ by a hundredth."""
    pairs = got.split(), wanted.split()
    return len(pairs[0]) == len(pairs[1]) and all(map(same_word, *pairs))


def same_word(got: str, wanted: str) -> bool:
    with contextlib.suppress(ValueError):
        return abs(float(got) - float(wanted)) <= 0.01 * max(abs(float(wanted)), 0.01)
    return got == wanted


def shown(content: str) -> list[tuple[list[str], str]]:
    """The commands of a block `console` with what each prints."""
    return [
        (commands(part)[0], part.partition("\n")[2])
        for part in re.split(r"^(?=\$ )", joined(content), flags=re.MULTILINE)
        if part
    ]


LONG = ("calibrate", "verify", "bench")


def run_by_their_pages() -> list[list[str]]:
    """The long commands of docs/, which README.md need not run once more."""
    found = [words for p in PAGES[1:] for kind, text in blocks(p) if kind == "sh"
             for words in commands(text)]  # fmt: skip
    return [words for words in found if words[0] in LONG]


def run(language: str, content: str, left_out: list[list[str]]) -> None:
    if language == "python":
        python("-c", content)
        return
    if language == "console":
        for words, wanted in shown(content):
            got = invoke(words)
            assert alike(got, wanted), f"{words}\n{got}\nis not\n{wanted}"
        return
    for words in commands(content):
        if words not in left_out:
            invoke(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    quicken(monkeypatch)
    quieten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("motion.safetensors", "labels.txt", "clips", "clips.csv"):
        os.symlink(ROOT / "examples" / "motion" / name, name)
    left_out = run_by_their_pages() if page == PAGES[0] else []
    ran = [run(kind, content, left_out) for kind, content in blocks(page) if kind in RUN]
    has_commands = any(language == "text" for language, _ in blocks(page))
    assert ran or has_commands or page.name == "words.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_have_their_options(page):
    known = get_command(app).commands
    for language, content in blocks(page):
        for words in commands(content) if language != "python" else ():
            command = known[words[0]]
            command = getattr(command, "commands", {}).get(" ".join(words[1:2]), command)
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            given = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert not given - options, words


# The tasks that a newcomer should find, each with the heading that docs/index.md leads to. Their
# blocks are run by test_what_a_page_shows_runs; two that need a server, by the tests of ELSEWHERE.
TASKS = {
    "the ten best clips for a sentence": "score.md#rank-clips-for-a-sentence",
    "400 classes, the top five as CSV": "score.md#recognise-actions-the-top-five-as-csv",
    "vectors for a database, with hashes": "embed.md#vectors-for-a-database",
    "two checkpoints on 50 clips": "evaluate.md#two-models-on-the-same-clips",
    "an HTTP service": "serve.md#http",
    "search in 100,000 videos": "find.md#a-library-of-many-videos",
    "prompt templates": "score.md#prompt-templates",
    "the moment in an hour of video": "find.md#the-moment-in-a-long-video",
    "events in a video": "watch.md#events-in-a-video",
    "frames from a camera or an array": "embed.md#frames-that-you-have-already",
    "a PyTorch DataLoader": "embed.md#a-dataloader",
    "run on one thread": "measure.md#one-thread",
    "run on half the cores": "measure.md#half-the-cores",
    "weights from the hub": "../CHECKPOINTS.md#by-name-on-the-hugging-face-hub",
}
ELSEWHERE = {
    "an HTTP service": ("tests/examples/test_python.py", "test_the_service_as_its_page_shows"),
    "weights from the hub": ("tests/checkpoints/test_hub.py", "test_the_commands_of_the_page"),
}


def section(page, anchor: str) -> str:
    """The text below a heading, which GitHub calls `anchor`, up to the next."""
    parts = re.split(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-"): t for h, t in found.items()}[
        anchor
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_few_lines_which_a_test_runs(task):
    index = ROOT / "docs" / "index.md"
    assert re.search(
        rf"^\| {re.escape(task)} \| \[.*\]\({TASKS[task]}\) \|$", index.read_text(), re.M
    )
    page, _, anchor = TASKS[task].partition("#")
    found = parted(section((index.parent / page).resolve(), anchor))
    if task in ELSEWHERE:
        file, test = ELSEWHERE[task]
        assert found and f"def {test}(" in (ROOT / file).read_text()
        return
    ran = [(language, text) for language, text in found if language in RUN]
    assert ran
    assert all(len(text.splitlines()) <= 10 for language, text in ran if language == "python")


def test_pages_that_messages_name_are_there():
    from stan_infer.errors import see

    code = [p.read_text() for top in ("stan_infer", "export") for p in (ROOT / top).rglob("*.py")]
    named = {name for text in code for name in re.findall(r"see\(['\"]([\w/-]+)['\"]\)", text)}
    assert len(named) >= 6 and all((ROOT / f"{name}.md").is_file() for name in named), named
    assert see("CHECKPOINTS") == " (see CHECKPOINTS.md)"


def test_the_readme_is_short_and_shows_the_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "](examples/motion/order.svg)" in text


def test_the_demo_gets_nine_of_its_ten_clips_right(monkeypatch):
    """README.md and docs/index.md say so."""
    monkeypatch.chdir(ROOT / "examples" / "motion")
    words = "run motion.safetensors clips --labels labels.txt --top 1 --json"
    found = [json.loads(line) for line in invoke(words.split()).splitlines()]
    right = [r["scores"][0]["text"][8:].replace(" ", "_") in r["video"] for r in found]
    assert (len(right), sum(right)) == (10, 9)


def test_a_page_that_is_wrong_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "examples" / "motion" / "motion.safetensors", "m.safetensors")
    with pytest.raises(AssertionError, match="no such file"):
        run("sh", "stan-infer inspect m.safetensors  # fine\nstan-infer inspect nothing.pth\n", [])
    with pytest.raises(AssertionError, match="is not"):
        run("console", "$ stan-infer inspect m.safetensors\nnothing\n", [])
    assert alike("a  0.35841 b", "a 0.3584 b") and not alike("a 0.36 b", "a 0.37 b")
    with pytest.raises(AssertionError, match="ZeroDivision"):
        run("python", "1 / 0\n", [])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    python("-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", folder, cwd=ROOT)
    return folder


def test_the_site_is_built_without_a_warning(site):
    for page in PAGES[1:]:
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file()
    text = (site / "CHECKPOINTS.html").read_text()
    assert "layouts.py::<wbr>test_<wbr>every_<wbr>layout_" in text  # broken behind separators only
    assert '<span class="pre whole"><span class="whole">--weights</span></span>' in text
    assert '<span class="whole">2026-' in (site / "BENCHMARKS.html").read_text()
    text = (site / "docs" / "api.html").read_text()
    for wrong in ("type<span", "*float32", "Type:", "\N{FULLWIDTH COLON}", ">_video<"):
        assert wrong not in text, wrong
    assert "<p>Whether" in text
    assert 'id="stan_infer.open_session"' in text and "help(stan_infer)" not in text


# What of a page of the site is wider than the window and no part of a box that scrolls; and lines
# of code, without what a command prints, that leave their box.
TOO_WIDE = """(() => {
const right = e => e.getBoundingClientRect().right;
const out = e => right(e) > innerWidth + 1 && !e.closest('.table-wrapper, pre');
const line = e => !e.querySelector('.go') && e.scrollWidth > e.clientWidth;
return [...[...document.querySelectorAll('article *')].filter(out),
        ...[...document.querySelectorAll('.line')].filter(line)].map(e => e.textContent);
})()"""
# Texts with too little contrast for WCAG's level AA.
FAINT = """(() => {
const numbers = c => c.match(/[\\d.]+/g).map(Number);
const linear = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = c => [.2126, .7152, .0722].reduce((s, w, i) => s + w * linear(numbers(c)[i]), 0);
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor, n = numbers(c);
    if (n.length === 3 || n[3] > .99) return c;
  }
  return 'rgb(255, 255, 255)';
};
const faint = e => {
  const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
  return (a + .05) / (b + .05) < 4.5;
};
const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
return [...document.querySelectorAll('article *')].filter(e => own(e) && faint(e))
  .map(e => e.textContent);
})()"""


def seen(page, file, width, dark, faint=False):
    """What is wrong with a page in a window of this width."""
    page.dark(dark=dark)
    page.open(file.as_uri(), width)
    wide = page.js("Math.max(0, document.documentElement.scrollWidth - innerWidth)")
    return [wide] * bool(wide) + page.js(TOO_WIDE) + (page.js(FAINT) if faint else [])


@needs_browser
def test_the_site_fits_screens_of_all_widths(site, tmp_path):
    files = [f for f in sorted(site.rglob("*.html")) if "_static" not in f.parts]
    files.remove(site / "index.html")  # it leads to docs/index.html
    with Page(tmp_path / "profile") as page:
        for file in files:
            for width, dark in ((390, False), (1100, True), (1280, False)):
                assert seen(page, file, width, dark, faint=width > 390) == [], (file.name, width)


@needs_browser
def test_what_is_wrong_on_a_screen_is_seen(tmp_path):
    wrong = {
        "<p style='width:500px'>a": ["a"],
        "<pre style='width:99px'><span class=line style='display:block'>" + "b" * 60: ["b" * 60],
        "<p style='color:#777;background:#888'>c": ["c"],
    }
    with Page(tmp_path / "profile") as page:
        for number, (html, found) in enumerate(wrong.items()):
            file = tmp_path / f"{number}.html"
            file.write_text(f"<!doctype html><body style='background:#fff'><article>{html}")
            assert [w for w in seen(page, file, 390, False, faint=True) if w in found] == found
