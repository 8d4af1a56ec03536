"""Each seeded fault is caught and its block named; pairs without a fault pass."""

import dataclasses
import json
import shutil
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random
from stan_infer.verification.inputs import write_videos
from stan_infer.verification.verify import verify
from tests.conftest import edit_json, tiny_config
from tests.exported import exported, rewrite

VOCABULARY = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}
LABELS = ["a dog", "a cat", "a red cross", "two people"]
BASES: dict[str, tuple[dict, dict]] = {
    "uint8": ({"short_side": 20}, {}),
    "words": ({**VOCABULARY, "short_side": 20}, {"labels": LABELS, "head": "classify"}),
    "float": ({"short_side": 24}, {"input": "float"}),
    "mug": ({"head": "mug", "mug_tau": 50.0}, {}),
}


class Folder:
    """A copy of an export, edited and hashed anew, so that only its numbers show the edit.

    The first part of a name, as "video" in "video/patches", is that of the graph it lies in.
    """

    def __init__(self, path):
        self.path = path
        self.manifest = json.loads((path / "manifest.json").read_text())
        self.graphs: dict[str, onnx.ModelProto] = {}

    def graph(self, name):
        file = f"{name.partition('/')[0]}.onnx"
        if file not in self.graphs:
            self.graphs[file] = onnx.load(self.path / file)
        return self.graphs[file].graph

    def weight(self, name, change):
        (tensor,) = (t for t in self.graph(name).initializer if t.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        changed = np.ascontiguousarray(change(array.copy()), array.dtype)
        assert changed.shape == array.shape and not np.array_equal(changed, array)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    def node(self, name):
        (node,) = (n for n in self.graph(name).node if n.name == name)
        return node

    def attribute(self, name, key, value):
        node = self.node(name)
        kept = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    def bypass(self, name, keep):
        """Make a node hand on its input number `keep`."""
        node = self.node(name)
        (kept,) = node.input[keep : keep + 1]
        node.op_type = "Identity"
        del node.input[:], node.attribute[:]
        node.input.append(kept)

    def before(self, name, node, at=0):
        """Put a node in front of an input of another one."""
        target, nodes = self.node(name), self.graph(name).node
        node.input[0] = target.input[at]
        target.input[at] = node.output[0]
        nodes.insert(list(nodes).index(target), node)

    def constant(self, array, graph="video"):
        weights = self.graph(graph).initializer
        weights.append(numpy_helper.from_array(np.asarray(array), f"fault/{len(weights)}"))
        return weights[-1].name

    def save(self):
        for file, model in self.graphs.items():
            onnx.save(model, self.path / file)
        rewrite(self.path, lambda manifest: manifest.update(self.manifest))


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    stage: str
    change: Callable[[Folder], object]
    block: str | None = None
    base: str = "uint8"


def patch(w):  # [p p 3, D] -> [p p, 3, D]
    return w.reshape(-1, 3, w.shape[-1])


def other_mean(f):
    """ImageNet's means instead of CLIP's, where the export folds them: table - W mean."""
    (tensor,) = (t for t in f.graph("video").initializer if t.name == "video/patches/weight")
    columns = patch(numpy_helper.to_array(tensor)).sum(0)  # [3, D]
    step = np.array(IMAGENET) - f.manifest["preprocess"]["mean"]
    f.weight("video/patches/positions", lambda w: w - step @ columns)


def swap_heads(w):  # rows of W_o, by head
    return np.roll(w, w.shape[0] // 2, 0)


def swap_qk(w):
    q, k, v = np.split(w, 3, -1)
    return np.concatenate([k, q, v], -1)


def no_scale(w):
    q, k, v = np.split(w, 3, -1)
    return np.concatenate([q * 4, k, v], -1)  # width 32, two heads


def last_end(f):
    f.attribute("text/head/end/ArgMax", "select_last_index", 1)


def class_first(f):
    order = f.constant(np.roll(np.arange(5), 1))
    node = helper.make_node("Gather", ["", order], ["fault/rolled"], "fault/rolled", axis=1)
    f.before("video/trunk/layer1/attention/norm/LayerNormalization", node)


def first_frame(f):
    node = f.node("video/head/mean/ReduceMean")
    index = f.constant(np.int64(0))
    node.op_type, node.input[1] = "Gather", index
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 1))


def exchange_merges(f):
    def change(content):
        merges = content["model"]["merges"]
        i = next(i for i, m in enumerate(merges) if list(m) == ["d", "o"] or m == "d o")
        merges[i], merges[i + 1] = merges[i + 1], merges[i]

    edit_json(f.path / "tokenizer.json", change)


def crop_off(f):
    (node,) = (
        n
        for n in f.graph("preprocess").node
        if n.name.startswith("preprocess/rows") and n.op_type == "Add" and "Div" in n.input[1]
    )
    one_row = f.constant(np.array([1], np.int64), "preprocess")
    extra = helper.make_node("Add", ["", one_row], ["fault/off"], "fault/off")
    f.before(node.name, extra, 1)


def swap_labels(f):
    lines = (f.path / "labels.txt").read_text().splitlines()
    (f.path / "labels.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")


def wrong_tau(f):
    for tensor in f.graph("score").initializer:
        array = numpy_helper.to_array(tensor)
        if array.size == 1 and float(array.flat[0]) in (50.0, np.float32(1 / 50)):
            changed = np.asarray(array * (2 if array.flat[0] == 50 else 0.5), array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


TRUNK, BRANCH = "video/trunk/layer", "video/branch/layer"
VIDEO, TEXT = "video tower", "text tower"


def weight(what, name, change, block=None):
    """A fault in one weight, which first shows in its own block unless another is named."""
    tower = f"{name.partition('/')[0]} tower"
    return Fault(what, tower, lambda f: f.weight(name, change), block or name.rpartition("/")[0])


def told(what, stage, part, base="uint8", **values):
    """A fault in what the manifest says."""

    def change(folder):
        place = folder.manifest
        for key in part.split("/"):
            place = place[key]
        place.update(values)

    return Fault(what, stage, change, base=base)


IMAGENET = [123.675, 116.28, 103.53]
SAMPLING = "preprocess/sampling"
SWAPPED = f"{BRANCH}0/spatial/qkv/weight"  # on one side alone this transposes the scores
FAULTS = [
    weight(
        "red and blue swapped in the patch weight",
        "video/patches/weight",
        lambda w: patch(w)[:, ::-1].reshape(w.shape),
    ),
    told("manifest says BGR", "input", "preprocess", color="BGR"),
    told("manifest samples one frame less", "decode", SAMPLING, frames=5),
    told("manifest has another sampling rule", "decode", SAMPLING, rule="trunc(n/T*i)"),
    told("manifest resizes by another filter", "resize", "preprocess/resize", filter="bicubic"),
    weight("heads exchanged in one out weight", f"{TRUNK}1/attention/out/weight", swap_heads),
    weight(
        "attention scale dropped in one layer",
        f"{TRUNK}2/attention/qkv/weight",
        no_scale,
        f"{TRUNK}2/attention/out",
    ),
    Fault("end of text taken from the last end", TEXT, last_end, "text/head/end"),
    told("manifest has another end token", "ids", "text", base="words", end=49405),
    weight("one weight transposed", f"{BRANCH}0/temporal/out/weight", lambda w: w.T),
    weight(
        "one layer overflows",
        f"{TRUNK}0/mlp/fc1/weight",
        lambda w: w * np.float32(1e38),
        f"{TRUNK}0/mlp/fc2",
    ),
    weight("time table shifted by one row", f"{BRANCH}0/start/time", lambda w: np.roll(w, 1, 0)),
    told("float graph with another mean", "input", "preprocess", base="float", mean=IMAGENET),
    Fault("another mean folded into the positions", VIDEO, other_mean, "video/patches"),
    weight("a bias dropped", f"{TRUNK}1/mlp/fc1/bias", np.zeros_like, f"{TRUNK}1/mlp/fc2"),
    weight("queries and keys exchanged", SWAPPED, swap_qk, f"{BRANCH}0/spatial/out"),
    Fault(
        "a residual add removed",
        VIDEO,
        lambda f: f.bypass(f"{TRUNK}1/mlp/fc2/Add_2", 0),
        f"{TRUNK}1/mlp/fc2",
    ),
    Fault(
        "epsilon 1e-2 in one norm",
        VIDEO,
        lambda f: f.attribute(f"{TRUNK}0/attention/norm/LayerNormalization", "epsilon", 1e-2),
        f"{TRUNK}0/attention/out",
    ),
    Fault("class token first in one layer", VIDEO, class_first, f"{TRUNK}1/attention/out"),
    Fault(
        "causal mask dropped in one layer",
        TEXT,
        lambda f: f.bypass("text/layer1/attention/softmax/Add", 0),
        "text/layer1/attention/out",
    ),
    weight("token table shifted by one row", "text/tokens/tokens", lambda w: np.roll(w, 1, 0)),
    Fault("two merges exchanged in the vocabulary", "ids", exchange_merges, base="words"),
    weight("head scaled", "video/head/video/weight", lambda w: w * 1.01),
    Fault("first frame in place of the mean", VIDEO, first_frame, "video/head/mean"),
    Fault("another tau in score.onnx", "score", wrong_tau, base="mug"),
    Fault("crop off by one row", "resize", crop_off),
    Fault("two labels exchanged", "labels", swap_labels, base="words"),
    told("another temperature in the manifest", "score", "model", temperature=0.02),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), 20)[1:4]


@pytest.fixture(scope="module")
def bases():
    made = {}
    for name, (config, options) in BASES.items():
        model = init_random(Stan(tiny_config(**config)), seed=7).eval().requires_grad_(False)
        made[name] = model, exported(model, **options)
    return made


def test_seeded_faults_are_caught_and_named(bases, videos, tmp_path):
    assert len(FAULTS) >= 20
    table, caught, named = [], 0, 0
    for i, fault in enumerate(FAULTS):
        model, whole = bases[fault.base]
        shutil.copytree(whole, tmp_path / str(i))
        folder = Folder(tmp_path / str(i))
        fault.change(folder)
        folder.save()
        record = verify(model, folder.path, videos=videos[:2], frames=(5,), bisect=True)
        first = record["first_failed"]
        found = record["bisect"].get(first, {})
        right = first == fault.stage and found.get("block") == fault.block
        # A fault that only the hash or the config shows would not test the comparison of numbers.
        caught += not record["pass"] and first != "files"
        named += right
        row = next((r for r in record["stages"] if r["stage"] == first), {})
        table.append(
            f"{'named ' if right else 'MISSED'} {fault.name}: {first}, {row.get('max_rel')}, "
            f"{found.get('block')}, {found.get('operation')}, {found.get('error')}, "
            f"{row.get('note')}"
        )
    report = "\n".join(table)
    print(report)
    assert caught == len(FAULTS) and named == len(FAULTS), report


CLEAN = [
    ({"head": head, "branch": branch, "activation": activation}, options)
    for head in ("mean", "mug", "mug_frame_token")
    for branch in ("selfattn", "conv")
    for activation in ("quick_gelu", "gelu")
    for options in (
        {},
        {"precision": "fp16"},
        {"input": "float", "frames": 6, "batch": 2},
        {"input": "float", "precision": "fp16", "batch": (1, 3)},
    )
] + [
    ({"heads": 4, "text_heads": 4, "short_side": 24}, {"frames": (4, 8)}),
    ({"frames": 1}, {"frames": 1}),
]


def test_clean_pairs_raise_no_alarm(videos, tmp_path):
    assert len(CLEAN) >= 50
    worst: dict[tuple[str, str], float] = {}
    for seed, (config, options) in enumerate(CLEAN):
        model = init_random(Stan(tiny_config(**config)), seed=seed).eval()
        folder = tmp_path / str(seed)
        export_model(model, folder, **options)
        record = verify(model, folder, videos=videos[1:], frames=(1, 2, 33))
        assert record["pass"], (config, options, record)
        left_out = {"ids", "labels"}  # the tiny vocabulary is not CLIP's
        assert set(record["not_compared"]) == left_out, record["not_compared"]
        for row in record["stages"]:
            key = options.get("precision", "fp32"), row["stage"]
            worst[key] = max(worst.get(key, 0.0), row["max_rel"] or 0.0)
    print(worst)
