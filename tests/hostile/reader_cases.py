"""Changed exported folders and calls, with the answer that every reader gives: one exit code.

tests/cli/test_same_answer.py asks `stan-infer run`, tests/cpp/test_same_answer.py `stan_classify`.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, edit_json, flip, tiny_config
from tests.exported import exported
from tests.hostile.folders import entry_of

TEXTS = ("--text", "a red cross", "--text", "a bar grows", "--engine", "ort")


@dataclasses.dataclass(frozen=True)
class Case:
    """change: what is done to the folder, and the word that each reader's message holds.

    form: how the folder is exported, a key of FORMS. cpp: the exit code of the C++ client where it
    is another one; `why` says why.
    """

    name: str
    code: int
    change: Callable[[Path], object] = lambda folder: None
    arguments: tuple[str, ...] = TEXTS
    form: str = "plain"
    cpp: int | None = None
    why: str = ""
    word: str = ""

    def make(self, place):
        """Write the folder to a new place; returns what a program gets: folder, video, options."""
        motion = ROOT / "examples" / "motion"
        sizes = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}
        config = tiny_config(**sizes, head="mug" if self.form == "mug" else "mean")
        labels = (motion / "labels.txt").read_text().split("\n")[:-1]
        model = init_random(Stan(config), seed=1).eval()
        folder = place / "folder"
        shutil.copytree(exported(model, labels=labels, **FORMS[self.form]), folder)
        self.change(folder)
        return folder, motion / "clips" / "red_cross_moves_left.mp4", *self.arguments


# Options of export_model.
FORMS = {
    "plain": {},
    "float": {"input": "float"},
    "fixed": {"batch": 2, "frames": 5},
    "mug": {},
    "reference": {"graph": "reference"},
}


def manifest(folder, change):
    edit_json(folder / "manifest.json", change)


def graph(m, role="video"):
    return next(g for g in m["graphs"] if g["role"] == role)


def put(name, value, *keys):
    """Set a value of the manifest."""

    def change(folder):
        def edit(m):
            for key in keys:
                m = m[key]
            m[name] = value

        manifest(folder, edit)

    return change


def drop(name, *keys):
    def change(folder):
        def edit(m):
            for key in keys:
                m = m[key]
            del m[name]

        manifest(folder, edit)

    return change


def of_graph(edit, role="video"):
    return lambda folder: manifest(folder, lambda m: edit(graph(m, role)))


def axis(ports, number, size, role="video"):
    """Another size of an axis of a graph's first input or output, in the manifest."""
    return of_graph(lambda g: g[ports][0]["shape"].__setitem__(number, size), role)


def text(edit):
    """Change the text of the manifest."""

    def change(folder):
        path = folder / "manifest.json"
        path.write_bytes(edit(path.read_bytes()))

    return change


def hashed(name, content):
    """Put a file into the folder and its hash into the manifest."""

    def change(folder):
        (folder / name).write_bytes(content)
        manifest(folder, lambda m: m["files"].update({name: entry_of(folder / name)}))

    return change


def without(name):
    return lambda folder: (folder / name).unlink()


def without_clip(folder):
    drop("clip", "golden")(folder)
    drop("golden.clip", "files")(folder)
    (folder / "golden.clip").unlink()


def another(name):
    """One bit of a file is another; its hash in the manifest is not."""
    return lambda folder: flip(folder / name)


def longer(name):
    return lambda folder: (folder / name).open("ab").write(b"x")


def linked(name):
    def change(folder):
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def beside(folder):
    (folder / "weights.bin").write_bytes(b"x")


def in_engines(folder):
    (folder / "engines").mkdir()
    (folder / "engines" / "note.txt").write_bytes(b"x")


def plan_of_nobody(folder):
    (folder / "engines").mkdir()
    (folder / "engines" / "video.plan").write_bytes(b"x")


def twice(folder):
    manifest(folder, lambda m: m["graphs"].append(graph(m)))


def foreign_graph(role):
    def change(folder):
        import onnx

        path = folder / f"{role}.onnx"
        model = onnx.load(path)
        for entry in model.metadata_props:
            entry.value = "0" * 64
        hashed(path.name, model.SerializeToString())(folder)

    return change


def unmarked_graph(folder):
    import onnx

    model = onnx.load(folder / "video.onnx")
    del model.metadata_props[:]
    hashed("video.onnx", model.SerializeToString())(folder)


def case(name, code, change=lambda folder: None, *arguments, **more):
    return Case(name, code, change, tuple(arguments) or TEXTS, **more)


USED, UNUSED = ("video.onnx", "tokenizer.json"), ("golden.npz", "golden.clip", "labels.npz")
MODEL = ("preprocess", "sampling"), ("preprocess", "resize"), ("preprocess",), ("text",)
CASES = [
    case("an unchanged folder", 0),
    # The graph's own hash of the config.
    case("head mug for mean", 4, put("head", "mug", "model"), word="was exported with"),
    case("another temperature", 4, put("temperature", 5, "model"), word="was exported with"),
    case("temperature as a whole number", 0, text(lambda b: b.replace(b"100.0", b"1e2"))),
    case("mean spelled otherwise", 0, text(lambda b: b.replace(b"122.771", b"1.22771e+02"))),
    case("other mug_tau", 4, put("mug_tau", 99.0, "model"), word="was exported with"),
    case("fewer layers", 4, put("layers", 2, "model"), word="was exported with"),
    case("a video graph of another export", 4, foreign_graph("video"), word="video.onnx was"),
    case("a text graph of another export", 4, foreign_graph("text"), word="text.onnx was"),
    case("preprocessing of another export", 4, foreign_graph("preprocess"), word="preprocess.onnx"),
    case("a score graph of another export", 4, foreign_graph("score"), form="mug"),
    case("a graph without a hash", 4, unmarked_graph, word="video.onnx was"),
    case("an unknown key of the model", 2, put("novelty", 1, "model")),
    case("a missing key of the model", 2, drop("mug_tau", "model")),
    case("a key without which no model is", 2, drop("width", "model")),
    case("the model's frames alone", 2, put("frames", 7, "model"), word="sampling.frames"),
    case("a word in place of a number", 2, put("width", "32", "model")),
    case("frames beyond the time table", 2, put("frames", 65, "model")),
    case("an unknown head", 2, put("head", "max", "model")),
    case("temperature 0", 2, put("temperature", 0, "model")),
    # Facts that stand twice.
    case("sampling.frames", 2, put("frames", 7, *MODEL[0]), word="preprocess.sampling.frames is"),
    case("sampling.rule", 2, put("rule", "random", *MODEL[0]), word="preprocess.sampling.rule is"),
    case("no sampling.rule", 2, drop("rule", *MODEL[0])),
    case("short_side", 2, put("short_side", 9, *MODEL[1]), word="preprocess.resize.short_side is"),
    case("filter", 2, put("filter", "bicubic", *MODEL[1]), word="preprocess.resize.filter is"),
    case("no filter", 2, drop("filter", *MODEL[1])),
    case("antialias", 2, put("antialias", True, *MODEL[1]), word="preprocess.resize.antialias is"),
    case("antialias 0", 2, put("antialias", 0, *MODEL[1]), word="preprocess.resize.antialias is"),
    case("rounding", 2, put("rounding", "floor", *MODEL[1]), word="preprocess.resize.rounding is"),
    case("resize none", 2, put("resize", "none", *MODEL[2]), word="preprocess.resize is"),
    case("crop", 2, put("crop", "none", *MODEL[2]), word="preprocess.crop is"),
    case("mean", 2, put("mean", [0, 0, 0], *MODEL[2]), word="preprocess.mean is"),
    case("std", 2, put("std", [1, 0, 1], *MODEL[2]), word="preprocess.std is"),
    case("color", 2, put("color", "BGR", *MODEL[2]), word="preprocess.color is"),
    case("folded_in_graph", 2, put("folded_in_graph", False, *MODEL[2]), word="folded_in_graph is"),
    case("input_dtype", 2, put("input_dtype", "float32", *MODEL[2]), word="input_dtype is"),
    case("layout", 2, put("layout", "BTCHW", *MODEL[2]), word="preprocess.layout is"),
    case("no preprocess", 2, put("preprocess", None)),
    case("truncation", 2, put("truncation", "authors", *MODEL[3]), word="text.truncation is"),
    case("clean", 2, put("clean", ["lower case"], *MODEL[3]), word="text.clean is"),
    case("context_length", 2, put("context_length", 16, *MODEL[3]), word="text.context_length is"),
    case("end token", 2, put("end", 1, *MODEL[3]), word="text.end is"),
    case("no text rules", 2, put("text", None)),
    # The manifest as a file.
    case("no manifest", 2, without("manifest.json")),
    case("a byte order mark", 2, text(lambda b: b"\xef\xbb\xbf" + b), word="not JSON"),
    case("UTF-16", 2, text(lambda b: b.decode().encode("utf-16")), word="not JSON"),
    case("cut off", 2, text(lambda b: b[:-9]), word="not JSON"),
    case("NaN", 2, text(lambda b: b.replace(b"100.0", b"NaN")), word="not JSON"),
    case("a key twice", 2, text(lambda b: b.replace(b"{", b'{"schema": "1.1", ', 1)), word="twice"),
    case("nested deeply", 2, put("command", eval("[" * 50 + "]" * 50))),
    case("larger than a MiB", 2, text(lambda b: b + b" " * 2**20)),
    case("schema 2.0", 2, put("schema", "2.0"), word="schema"),
    case("schema as a number", 2, put("schema", 1.1), word="schema"),
    case("schema 1.7", 0, put("schema", "1.7")),
    case("a key of later versions", 0, put("novelty", {"a": [1]})),
    case(
        "schema 1.0", 0, put("schema", "1.0"), cpp=2,
        why="graphs of 1.0 note a hash of a text that only Python writes, some none at all",
    ),
    case("names that leave the folder", 2, of_graph(lambda g: g.update(file="../video.onnx"))),
    case("a name with a space", 2, put("a b", {"bytes": 0, "sha256": "0" * 64}, "files")),
    case("a hash in capitals", 2, put("sha256", "A" * 64, "files", "video.onnx")),
    case("a size that is negative", 2, put("bytes", -1, "files", "video.onnx")),
    # Files.
    *(case(f"{n} is missing", 2, without(n), word=n) for n in (*USED, *UNUSED)),
    *(case(f"{n} is another", 4, another(n), word=n) for n in (*USED, *UNUSED)),
    *(case(f"{n} is longer", 2, longer(n), word="incomplete copy?") for n in (*USED, *UNUSED)),
    *(case(f"{n} is a link", 2, linked(n), word="is a link") for n in (*USED, *UNUSED)),
    case("a file that is not listed", 2, beside, word="weights.bin"),
    case("a folder that is not listed", 2, lambda f: (f / "sub").mkdir(), word="sub"),
    case(
        "a link that is not listed", 2, lambda f: (f / "x").symlink_to("/etc/hostname"),
        word="is a link",
    ),
    case("a listed file that nothing uses", 2, hashed("payload.bin", b"x"), word="payload.bin"),
    case("a notice", 0, hashed("NOTICE", b"x")),
    case("a foreign file in engines", 2, in_engines, word="engines/note.txt"),
    case("a plan beside the graphs", 0, plan_of_nobody),
    case("a pipe", 2, lambda f: os.mkfifo(f / "pipe")),
    # Graphs.
    case("two graphs of one role", 2, twice),
    case("an unknown role", 2, of_graph(lambda g: g.update(role="videos"))),
    case("a graph of another suffix", 2, of_graph(lambda g: g.update(file="video.ort"))),
    case("no graphs", 2, put("graphs", [])),
    case("a fixed batch", 0, form="fixed"),
    case(
        "a fixed batch in the manifest alone", 2, of_graph(lambda g: g["dims"].update(batch=[2, 2]))
    ),
    case(
        "a free batch in the manifest alone", 2,
        of_graph(lambda g: g["dims"].update(batch=[1, 2])), form="fixed",
    ),
    case("fewer frames than are sampled", 2, of_graph(lambda g: g["dims"].update(frames=[1, 2]))),
    case("no range of an axis", 2, of_graph(lambda g: g["dims"].pop("batch"))),
    case("a range that is reversed", 2, of_graph(lambda g: g["dims"].update(batch=[2, 1]))),
    case("another size of an input", 2, axis("inputs", 2, 9)),
    case("another type of an input", 2, of_graph(lambda g: g["inputs"][0].update(dtype="float32"))),
    case("another size of an output", 2, axis("outputs", 1, 9)),
    case("another output", 2, of_graph(lambda g: g["outputs"][0].update(name="other"))),
    case("another input", 2, of_graph(lambda g: g["inputs"][0].update(name="other"))),
    case("another width of the text", 2, axis("outputs", 1, 9, "text")),
    case("weights elsewhere", 2, of_graph(lambda g: g.update(external_data=["w.data"]))),
    case("no list of weights", 0, of_graph(lambda g: g.update(external_data=None))),
    case("golden data that is not listed", 2, put("file", "other.npz", "golden")),
    case("a golden clip that is not listed", 2, put("clip", "other.mp4", "golden")),
    case("a golden clip that is another entry's", 2, put("clip", "labels.npz", "golden")),
    case("a golden clip as a number", 2, put("clip", 1, "golden")),
    case("a golden clip that nothing names", 2, drop("clip", "golden"), word="golden.clip"),
    case("an older export, without a golden clip", 0, without_clip),
    case("golden data without tolerances", 0, drop("video_tolerance", "golden")),
    # Calls.
    case("clips as floats", 0, form="float"),
    case("a Mug head", 0, form="mug"),
    case("a reference graph", 0, form="reference"),
    case("blank text", 2, lambda f: None, "--text", "  ", "--text", "a bar", word="is blank"),
    case("blank text of Unicode", 2, lambda f: None, "--text", "\u3000\u2003", word="is blank"),
    case("empty text", 2, lambda f: None, "--text", ""),
    case("top 0", 0, lambda f: None, *TEXTS, "--top", "0"),
    case("top below 0", 2, lambda f: None, *TEXTS, "--top", "-1"),
]  # fmt: skip
