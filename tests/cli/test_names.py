"""Names that are not UTF-8, with control characters and escapes: every command takes them.

Each name comes out as names.printable or names.storable gives it: text that any encoder takes.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from stan_infer.library.embed_library import embed_library
from tests.conftest import ROOT

ODD = os.fsdecode(b"caf\xe9 \x1b[2J\n")  # bytes of Latin-1, an escape sequence, a line's end
STORED, PRINTED = "caf\\xe9 \x1b[2J\n", "caf\\xe9 \\x1b[2J\\n"
SETTINGS = ("--set", "heads=2", "--set", "text_heads=1")


@pytest.fixture(scope="module")
def odd(checkpoint, artefact, tmp_path_factory):
    """A folder of that name: a checkpoint, an exported folder, videos and texts, all so named."""
    folder = tmp_path_factory.mktemp("names") / ODD
    folder.mkdir()
    shutil.copyfile(checkpoint, folder / f"{ODD}.safetensors")
    shutil.copytree(artefact, folder / f"{ODD}.dir")
    (folder / "videos").mkdir()
    clips = sorted((ROOT / "examples/motion/clips").glob("*.mp4"))[:3]
    for i, clip in enumerate(clips):
        shutil.copyfile(clip, folder / "videos" / f"{i}{ODD}.mp4")
    (folder / f"{ODD}.txt").write_text("a red square\na blue disc\n")
    rows = "".join(f"v{i},a video\n" for i in range(2))
    for i in range(2):
        shutil.copyfile(clips[i], folder / "videos" / f"v{i}.mp4")
    ckpt = folder / f"{ODD}.safetensors"
    embed_library(ckpt, [folder / "videos"], folder / f"{ODD}.lib", workers=1)
    (folder / f"{ODD}.csv").write_text(f"video,text\n{rows}")
    return folder


BENCH = "--repeats 1 --min-seconds 0 --out {out}.jsonl"
COMMANDS = {
    "inspect": "inspect {ckpt}",
    "inspect folder": "inspect {dir}",
    "run": "run {ckpt} {videos} --labels {txt}",
    "run folder": "run {dir} {videos} --labels {txt}",
    "run openvino": "run {dir} {videos} --labels {txt} --engine openvino",
    "embed": "embed {ckpt} {videos} -o {out}.npz",
    "embed npy": "embed {ckpt} {videos} -o {out}.npy",
    "embed folder": "embed {dir} {videos} -o {out}.npz",
    "search": "search {lib} a --model {ckpt} --csv {out}.csv --html {out}.html",
    "search example": "search {lib} --model {ckpt} --like {clip} --path *{odd}.mp4",
    "eval": "eval {dir} --dataset retrieval --annotations {csv} --videos {videos} --cache {out}",
    "eval out": "eval {dir} --dataset retrieval --annotations {csv} --videos {videos} -o {out}",
    "export": "export {ckpt} -o {out} --card --license {odd} --clips {videos}",
    "export labels": "export {ckpt} -o {out} --labels {txt} --template {odd}{{}}",
    "export server": "export {dir} -o {out} --format triton-server",
    "convert": "convert {ckpt} {out}.safetensors",
    "verify": "verify {ckpt} {dir}",
    "bench": "bench {ckpt} --engine eager --no-memory --report {out}.page " + BENCH,
    "bench folder": "bench {dir} --engine ort --include-decode {videos} " + BENCH,
    "calibrate": "calibrate {dir} --videos {videos} -o {out} --force --min-cosine 0.01 --samples 2",
}


def words(odd, out, command):
    names = {
        "ckpt": odd / f"{ODD}.safetensors",
        "dir": odd / f"{ODD}.dir",
        "videos": odd / "videos",
        "lib": odd / f"{ODD}.lib",
        "clip": odd / "videos" / f"0{ODD}.mp4",
        "txt": odd / f"{ODD}.txt",
        "csv": odd / f"{ODD}.csv",
        "odd": ODD,
        "out": out / ODD,
    }
    return [word.format(**names) for word in COMMANDS[command].split()]


def is_text(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)


@pytest.mark.usefixtures("quick_calibration")
@pytest.mark.parametrize("json_too", [False, True], ids=["table", "json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_such_names(cli, odd, tmp_path, command, json_too):
    done = cli(*words(odd, tmp_path, command), *(["--json"] if json_too else []), code=(0, 4))
    assert "internal error" not in done.err, done.err
    assert is_text(done.out) and "\x1b" not in done.out + done.err
    if json_too:
        assert all(is_text(json.dumps(r, ensure_ascii=False)) for r in done.records)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".html", ".md", ".txt") and path.is_file():
            assert is_text(path.read_text(encoding="utf-8")), path
            if path.suffix == ".json":
                assert is_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False)), path
        if path.suffix == ".npz" and path.parent == tmp_path:
            with np.load(path) as arrays:
                assert all(map(is_text, arrays["paths"].tolist()))
                assert f"0{STORED}.mp4" in arrays["paths"][0]
    manifest = tmp_path / ODD / "manifest.json"
    if command == "export":
        source = json.loads(manifest.read_text())
        assert source["source"]["file"] == f"{STORED}.safetensors"
        assert source["licence"] == STORED
    if command.startswith("run"):
        assert (STORED if json_too else PRINTED) in (
            done.records[0]["video"] if json_too else done.out
        )


@pytest.mark.parametrize("command", ["inspect", "run", "embed", "export"])
@pytest.mark.parametrize("coerced", ["1", "0"])
def test_a_locale_that_knows_ascii_only(odd, tmp_path, command, coerced):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": coerced}
    given = [os.fsencode(w) for w in words(odd, tmp_path, command)]
    done = subprocess.run(
        [sys.executable, "-m", "stan_infer", *given], capture_output=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"\x1b" not in done.stdout


def test_such_a_name_that_is_missing(cli, tmp_path):
    missing = tmp_path / ODD
    for command in (("inspect", missing), ("run", missing, missing, "--text", "a")):
        done = cli(*command, code=2, says="caf\\xe9 \\x1b[2J")
        # A line's end in a name is a blank in an error, which is one line.
        assert done.err.count("\n") == 1
