"""The types of manifest.json, and the files that it may name, with their largest sizes.

`folder.read_artefact` checks a manifest against both, once. Keys that are not named here are
allowed, since a later version may write some.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from stan_infer.artefacts.parts import row_names
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError, check_word

MAX_FILE = 2**34  # bytes; the C++ client reads no larger one either
MAX_TOTAL = 2 * MAX_FILE
MAX_LABELS = 100_000
_MIB = 2**20

Word = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=65536)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**24)]  # of one axis
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
Triple = Annotated[list[Number], Meta(min_length=3, max_length=3)]  # of red, green, blue
Pair = Annotated[list[Size], Meta(min_length=2, max_length=2)]  # smallest, largest


class Port(TypedDict):
    """An input or output of a graph."""

    name: Word
    dtype: Word
    shape: Annotated[list[Size | Word], Meta(max_length=8)]  # sizes, or names of dimensions


class Quant(TypedDict):
    """The 8-bit part of a graph: how many linears are in 8 bits."""

    linears: NotRequired[Count]


class GraphEntry(TypedDict):
    """One graph."""

    file: Word
    role: Word
    precision: Word
    opset: Annotated[int, Meta(ge=1, le=1000)]
    inputs: Annotated[list[Port], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[Port], Meta(max_length=64)]
    dims: Annotated[dict[Word, Pair], Meta(max_length=16)]
    ir: NotRequired[Count]
    min_onnxruntime: NotRequired[Word]  # of that opset; earlier exports lack it
    writer: NotRequired[Word]  # the source that wrote it; earlier exports lack it
    nodes: NotRequired[Count]
    graph: NotRequired[Word]  # fused or reference
    external_data: NotRequired[Annotated[list[Word], Meta(max_length=1)] | None]
    quant: NotRequired[Quant | None]


class Parity(TypedDict):
    """How far a graph's outputs were from the model's when it was exported."""

    file: Word
    max_rel: NotRequired[Number]
    min_cos: NotRequired[Number]


class Labels(TypedDict):
    """The classes of a folder, and the file with their embeddings.

    template: the text of a class; or templates: several, of which the embeddings are averages.
    """

    file: Word
    embeddings: NotRequired[Word | None]
    template: NotRequired[Text]
    templates: NotRequired[Annotated[list[Text], Meta(min_length=2, max_length=1000)]]
    count: NotRequired[Annotated[int, Meta(ge=1, le=MAX_LABELS)]]


class Golden(TypedDict):
    """Inputs and outputs to test another program against; tolerances relative to the largest.

    clip: a video whose decoded frames are among them; earlier exports lack it.
    """

    file: Word
    clip: NotRequired[Word | None]
    texts: NotRequired[Annotated[list[Text], Meta(max_length=1000)]]
    video_tolerance: NotRequired[Annotated[float, Meta(ge=0, le=1e6)]]
    text_tolerance: NotRequired[Annotated[float, Meta(ge=0, le=1e6)]]
    score_tolerance: NotRequired[Annotated[float, Meta(ge=0, le=1e6)]]


class Origin(TypedDict):
    """Where the weights come from."""

    file: NotRequired[Text | None]
    checkpoint_sha256: NotRequired[Digest | None]
    weights: NotRequired[Text]  # the set of weights that was chosen in a file of several


class Tool(TypedDict):
    """What wrote the folder."""

    name: Word
    version: NotRequired[Word]


class FileEntry(TypedDict):
    """Size and hash of one file."""

    bytes: Annotated[int, Meta(ge=0, le=MAX_FILE)]
    sha256: Digest


class Manifest(TypedDict):
    """manifest.json."""

    schema: Word
    model: Annotated[dict[str, Any], Meta(max_length=100)]  # see StanConfig.from_dict
    graphs: Annotated[list[GraphEntry], Meta(max_length=16)]
    files: Annotated[dict[str, FileEntry], Meta(max_length=100)]
    tool: NotRequired[Tool]
    source: NotRequired[Origin | None]
    licence: NotRequired[Text | None]
    command: NotRequired[Text | None]
    labels: NotRequired[Labels | None]
    golden: NotRequired[Golden | None]
    parity: NotRequired[Annotated[list[Parity], Meta(max_length=100)] | None]
    ranges: NotRequired[list[Any] | None]
    preprocess: NotRequired[dict[str, Any] | None]
    text: NotRequired[dict[str, Any] | None]


class Earlier(TypedDict):
    """The part of a manifest that is read before its folder is replaced by a new export."""

    tool: Tool
    files: dict[str, Any]


# Role of a graph -> its inputs with their ranks, and the dimensions whose ranges it must give.
_ROLES: dict[str, tuple[dict[str, int], set[str]]] = {
    "video": ({"video": 5}, {"batch", "frames"}),
    "text": ({"input_ids": 2}, {"batch", "length"}),
    "trunk": ({"frames": 4}, {"frames"}),
    "branch": ({}, {"batch", "frames"}),  # with one input of rank 4 per branch layer
    "preprocess": ({"frames": 4}, {"n", "height", "width"}),
    "score": (
        {"token_embeds": 3, "input_ids": 2, "frame_embeds": 3},
        {"texts", "videos", "frames", "length"},
    ),
}
# Patterns of files that no entry of the manifest names, and their largest sizes in bytes.
_OTHER_FILES = {
    r"tokenizer\.json": 16 * _MIB,
    r"calibration\.json": 16 * _MIB,
    r"sensitivity\.(svg|png)": 16 * _MIB,
    r"README\.md": 4 * _MIB,
    r"(NOTICE|LICENSE|LICENCE)[A-Za-z0-9_.-]*": 4 * _MIB,
}


def check_manifest(manifest: Manifest, config: StanConfig) -> dict[str, int]:
    """Refuse names and sizes that no export writes, in a manifest whose types were checked.

    Raises InputError for a role or a file that appears twice, a range whose ends are reversed,
    weights under another name than their graph's, a file that nothing uses, or one that is larger
    than a model of this config can need. Returns the largest size of each file, in bytes.
    """
    graphs, named = manifest["graphs"], [*_named_limits(manifest, config)]
    for name, values in (("role", [g["role"] for g in graphs]), ("file", [n for n, _ in named])):
        twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if twice is not None:
            raise InputError(f"two entries have the {name} {twice!r}")
    for g in graphs:
        if not g["file"].endswith(".onnx"):
            # Runtimes choose a format by the file's name, and some formats hold more than a graph.
            raise InputError(f"{g['file']!r} is not an .onnx file")
        for name, (low, high) in g["dims"].items():
            if low > high:
                raise InputError(f"{g['file']}: the range of {name} is reversed: {low} to {high}")
        needed = {n for port in g["inputs"] for n in port["shape"] if isinstance(n, str)}
        check_word(f"{g['file']}: role", g["role"], _ROLES)
        inputs, ranges = _ROLES[g["role"]]
        if g["role"] == "branch":
            inputs = dict.fromkeys(row_names(config), 4)
        needed |= ranges
        given = sorted((port["name"], len(port["shape"])) for port in g["inputs"])
        if given != sorted(inputs.items()):
            raise InputError(
                f"{g['file']}: the inputs of a {g['role']} graph and their ranks are {inputs}"
            )
        if not g["outputs"] or not all(port["shape"] for port in g["outputs"]):
            raise InputError(f"{g['file']}: it has no output, or one without axes")
        if missing := sorted(needed - g["dims"].keys()):
            raise InputError(f"{g['file']}: 'dims' lacks {missing[0]!r}")
        for data in g.get("external_data") or []:
            if data != f"{g['file']}.data":
                raise InputError(
                    f"{g['file']} has its weights in {data!r}; an export writes {g['file']}.data"
                )
    limits = dict(named)
    for name in limits:
        if name not in manifest["files"]:
            raise InputError(f"{name!r} has no hash: 'files' does not list it")
    for name, entry in manifest["files"].items():
        for pattern, size in _OTHER_FILES.items():
            if re.fullmatch(pattern, name):
                limits.setdefault(name, size)
        if name not in limits:
            raise InputError(f"{name[:80]!r} is a file that nothing in this folder uses")
        if entry["bytes"] > limits[name]:
            raise InputError(
                f"{name!r} has {entry['bytes']} bytes, more than this model can need; allowed are "
                f"{limits[name]}"
            )
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    if total > MAX_TOTAL:
        raise InputError(f"its files have {total} bytes; allowed are {MAX_TOTAL}")
    return limits


def _named_limits(manifest: Manifest, config: StanConfig) -> Iterator[tuple[str, int]]:
    """Each file that an entry names, and the most bytes that it can need for this config."""
    golden, labels = manifest.get("golden"), manifest.get("labels")
    length, e, t = config.context_length, config.embed_dim, config.max_frames
    classes = (labels.get("count") or 1000) * (1 + length) * e * 4 if labels else 0
    weights = 4 * sum(prod(shape) for shape in parameter_shapes(config).values())
    tables = 4 * t * config.patches * config.width
    # Folding adds up to a quarter to the weights. The constant covers nodes and preprocessing.
    graph = min(MAX_FILE, (weights + tables + classes) * 5 // 4 + 64 * _MIB)
    for g in manifest["graphs"]:
        yield g["file"], graph
        for data in g.get("external_data") or []:
            yield data, graph
    if golden:
        least = (g["dims"].get("batch", [1, 1])[0] for g in manifest["graphs"])
        clips = max([2, *least]) * t * (3 * config.image_size**2 + e) * 4
        yield golden["file"], min(MAX_FILE, clips + 32 * config.short_side**2 + 16 * _MIB)
        if clip := golden.get("clip"):
            yield clip, _MIB
    if labels:
        yield labels["file"], 16 * _MIB
        if embeddings := labels.get("embeddings"):
            yield embeddings, min(MAX_FILE, 2 * classes + _MIB)
