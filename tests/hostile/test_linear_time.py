"""Strangers' texts cost time in proportion to their length, whatever they hold.

By ratio, so that no machine is too slow: four times the text may take four times the time, not
sixteen times.
"""

import io
import re
import tempfile
import time
from pathlib import Path

import pytest

from stan_infer.artefacts.folder import is_engine_file
from stan_infer.artefacts.onnx_file import check_external, read_graph
from stan_infer.checkpoints import recognise
from stan_infer.checkpoints.clip_names import is_clip
from stan_infer.checkpoints.openclip import is_clip_name
from stan_infer.checkpoints.pickle_values import Call, Global, Placeholder
from stan_infer.checkpoints.state_dicts import find_state_dicts
from stan_infer.checkpoints.torch_pickle import read_pickle
from stan_infer.checkpoints.trainer_hints import trainer_hints
from stan_infer.checkpoints.weight_sets import find_sets
from stan_infer.errors import InputError, nearest
from stan_infer.evaluation.class_files import read_class_pairs
from stan_infer.evaluation.from_files import EvaluationOptions
from stan_infer.evaluation.retrieval_files import read_pairs
from stan_infer.evaluation.task import keep_videos, recognition_task, retrieval_task
from stan_infer.system.outside_file import stays_inside
from stan_infer.system.stored_zip import read_directory
from stan_infer.text.labels import read_labels
from stan_infer.text.tokenizer import tokenize
from stan_infer.verification.stored import BLOCK
from stan_infer.video.find import video_stem
from tests.hostile.fuzz_torch_file import write_zip

QUADRATIC = 9  # between 4 and 16
AT_LEAST_S = 0.01  # a measurement; calls are repeated until they take so long


def growth(function, make, n, tries=4) -> float:
    """How many times longer 4 n takes than n: the smallest of several tries."""
    small, large = make(n), make(4 * n)
    calls = 1
    while (took := _seconds(function, small, calls)) < AT_LEAST_S:
        calls = max(2 * calls, int(calls * AT_LEAST_S / max(took, 1e-9)))
    ratios = []
    for _ in range(tries):
        pair = [min(_seconds(function, x, calls) for _ in range(3)) for x in (small, large)]
        ratios.append(pair[1] / pair[0])
        if ratios[-1] < QUADRATIC:
            break
    return min(ratios)


def _seconds(function, value, calls) -> float:
    start = time.thread_time()  # other processes take none of it
    for _ in range(calls):
        try:
            function(value)
        except InputError:
            pass
    return time.thread_time() - start


def between(start: str, repeated: str, end: str = ""):
    return lambda n: start + repeated * n + end


def pickle_of(repeated: bytes):
    return lambda n: b"\x80\x04](" + repeated * n + b"e."


def external(path):
    """What names one tensor's file, in a graph of nothing else."""
    import onnx

    def make(n):
        tensor = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="a/" * n + "\n")
        file = path / f"{n}.onnx"
        file.write_bytes(
            onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString()
        )
        return file

    return make


def known(module, name):
    return True


def pairs(text):
    """Read annotations with texts, as DiDeMo's, and look for some of their videos."""
    task = retrieval_task(read_pairs(text, "x"), "x", joined=True)
    keep_videos(task, task.videos[::2], "x")


def classes(text):
    recognition_task(read_class_pairs(text, "x"), "x")


TENSOR = Call("_rebuild_tensor_v2", ())


def nested_modules(n):
    """A module in a module, n deep, each with a tensor."""
    inside = None
    for _ in range(n):
        state = {"_parameters": {"w": TENSOR}, "_buffers": {}, "_modules": {"a": inside}}
        inside = Placeholder(Global("a", "B"), state)
    return inside


def labels_of(text):
    """Read class names; the file is written anew for each text."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        read_labels(Path(file.name), split_words=True)


CASES = {
    "hint scale": (trainer_hints, between("scale", " "), 20_000),
    "hint scale (": (trainer_hints, between("scale = (", " "), 20_000),
    "hint scale, 1": (trainer_hints, between("scale = (-1", " "), 20_000),
    "hint scale, 2": (trainer_hints, between("scale = (-1, 1", " "), 20_000),
    "hint scales": (trainer_hints, between("", "scale = ( "), 5_000),
    "hint lines": (trainer_hints, between("depth", "\n"), 20_000),
    "hint depths": (trainer_hints, between("", "depth = 12345 "), 5_000),
    "hint mean": (trainer_hints, between("return_mean", " = "), 10_000),
    "hint means": (trainer_hints, between("", "return_mean = "), 5_000),
    "hint patches": (trainer_hints, between("", "patch1"), 10_000),
    "hint long": (trainer_hints, between("", "scale =      "), 200_000),
    "msvd, one word": (pairs, between("", "_1", "x y"), 20_000),
    "msvd, digits": (pairs, between("_1_", "1", "x y"), 20_000),
    "msvd, lines": (pairs, between("", "a_1_2 text\n"), 2_000),
    "texts, table": (pairs, between("video;text\n", 'a.mp4;"a ""b"" c"\n'), 2_000),
    "texts, one cell": (pairs, between('video,text\na,"', '""', '"'), 20_000),
    "texts, objects": (pairs, between("", '{"video": "a", "text": "b"}\n'), 1_000),
    "texts, suffixes": (pairs, between("video,text\na", ".mp4.", ",b"), 20_000),
    "classes, blanks": (classes, between("", " ", "x"), 20_000),
    "classes, header": (classes, between("video", " ", "x"), 20_000),
    "classes, lines": (classes, between("", "a b\n"), 2_000),
    "classes, numbers": (classes, lambda n: "".join(f"a{i}.mp4 {i}\n" for i in range(n)), 2_000),
    "classes, separators": (classes, between("", "a,b;c\td e\n"), 2_000),
    "classes, columns": (classes, between("video,label", ",x", "\na,b"), 5_000),
    "classes, brackets": (classes, between('[{"id":"1","template":"', "[", '"}]'), 20_000),
    "classes, deep": (classes, between("[", "[", ""), 200),
    "labels, lines": (labels_of, lambda n: "".join(f"a{i}_b\n" for i in range(n)), 2_000),
    "labels, numbers": (labels_of, lambda n: "".join(f"{i} a{i}\n" for i in range(n)), 2_000),
    "labels, digits": (labels_of, between("", "1", " a"), 20_000),
    "labels, blanks": (labels_of, between("a", " ", "1"), 20_000),
    "labels, tabs": (labels_of, between("a", "\t", "x\nb"), 20_000),
    "labels, columns": (labels_of, between("id,name", ",x"), 5_000),
    "labels, capitals": (labels_of, between("", "Ab"), 20_000),
    "a name of suffixes": (video_stem, between("a", ".mp4"), 20_000),
    "a name of folders": (video_stem, between("a", "/a"), 20_000),
    "nearest": (lambda w: nearest(w, [w + "b", "b" + w]), between("", "ab"), 500),
    "keys": (
        recognise.recognise,
        lambda n: {f"a.balance{'1' * 100}x{i}": (1,) for i in range(n)},
        1_000,
    ),
    "layers": (
        recognise.recognise,
        lambda n: {"pre_layrnorm.weight": (64,), **{f"layers.{i}.x": (1,) for i in range(n)}},
        1_000,
    ),
    "a block": (BLOCK.fullmatch, between("", "a/attention/"), 5_000),
    "clip name": (is_clip_name, between("A", "a.", "!"), 20_000),
    "file name": (stays_inside, between("a", "/a", "!"), 40),
    "plan name": (is_engine_file, between("engines/", ".plan.a"), 500),
    "views": (lambda text: EvaluationOptions(views=text), between("1", "1", "x1"), 20_000),
    "pickle, lists": (lambda p: read_pickle(p, known, known), pickle_of(b"]\x94"), 5_000),
    "pickle, nested": (lambda p: read_pickle(p, known, known), pickle_of(b"N\x85"), 5_000),
    "pickle, texts": (lambda p: read_pickle(p, known, known), pickle_of(b"\x8c\x03abc"), 5_000),
    "pickle, recalled": (
        lambda p: read_pickle(p, known, known),
        lambda n: b"\x80\x04]\x94(" + b"h\x00" * n + b"e.",
        5_000,
    ),
    "state dicts": (
        find_state_dicts,
        lambda n: {f"a{i}": {"b": {"c": TENSOR}} for i in range(n)},
        500,
    ),
    "state dicts, recalled": (
        find_state_dicts,
        lambda n: {f"a{i}": shared for i in range(n) for shared in [dict.fromkeys("abc", TENSOR)]},
        500,
    ),
    "modules": (find_state_dicts, nested_modules, 100),
    "modules, recalled": (
        find_state_dicts,
        lambda n: {f"m{i}": shared for shared in [nested_modules(20)] for i in range(n)},
        500,
    ),
    "sets, names": (
        lambda keys: find_sets({"model": keys, "ema": keys}, "model", {}),
        lambda n: [f"module.backbone.layers.{i}" for i in range(n)],
        500,
    ),
    "sets, places": (
        lambda keys: find_sets({k: [k] for k in keys} | {"": ["a"]}, "", {}),
        lambda n: [f"ema_{i}" for i in range(n)],
        500,
    ),
    "sets, small places": (
        lambda keys: find_sets({"model": keys, **{f"ema{k}": [k] for k in keys}}, "model", {}),
        lambda n: [f"a{i}.w" for i in range(n)],
        500,
    ),
    "sets, small parts": (
        lambda keys: find_sets({"": [*keys, *(f"ema_{k}" for k in keys)]}, "", {}),
        lambda n: [f"{i}.w" for i in range(n)],
        500,
    ),
    "sets, one name": (
        lambda key: find_sets({"": [key, f"ema_{key}"]}, "", {}),
        between("", "module._orig_mod.", "x"),
        500,
    ),
    "sets, no dots": (
        lambda keys: find_sets({"": keys}, "", {}),
        lambda n: [name for i in range(n) for name in (f"a.{i}", f"ema_a_{i}")],
        500,
    ),
    "clip's names": (is_clip, lambda n: {f"a{i}.visual": (1,) for i in range(n)}, 1_000),
    "zip entries": (
        lambda z: read_directory(io.BytesIO(z), len(z)),
        lambda n: write_zip({f"a/{i}": b"" for i in range(n)}),
        500,
    ),
    "zip ends": (
        lambda z: read_directory(io.BytesIO(z), len(z)),
        lambda n: b"PK\x03\x04" + b"PK\x05\x06" * n,
        4_000,
    ),
    # No caption is longer than 10,000 characters.
    **{
        f"caption of {part!r}": (tokenize_one, between("", part), 2_400 // len(part))
        for tokenize_one in [lambda text: tokenize([text])]
        for part in (
            *("a", "ab ", "1", "'", "!", " ", "&", "&#", "&#0", "&#9", "&amp;", "&lt", "\n"),
            *("â€", "Ã", "\u00e9", "\u0301", "<", "<|startoftext|>", "\u65e5", "\x1b[", "ﬁ"),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_time_grows_with_the_length(name):
    function, make, n = CASES[name]
    assert growth(function, make, n) < QUADRATIC


def test_names_of_external_files(tmp_path):
    def check(path):
        check_external(read_graph(path), ())

    assert growth(check, external(tmp_path), 4_000) < QUADRATIC


def test_the_measure_finds_what_is_quadratic():
    pattern = re.compile(r"\bscale\s*=\s*\(\s*-1\s*,\s*(\d{1,5})\s*,?\s*\)")
    make = between("scale = (-1, 1", " ")
    # On a busy machine a try may come out lower.
    assert any(growth(pattern.search, make, 2_000, tries=1) > QUADRATIC for _ in range(10))
