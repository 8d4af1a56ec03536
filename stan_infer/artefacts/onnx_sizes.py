"""The memory and work that a graph takes for given input sizes, worked out before it runs.

In a graph from a stranger, one small constant can make a runtime take gigabytes or hours. So the
graph's need is compared with that of a model of its config, and a graph that takes more is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from stan_infer.artefacts.onnx_file import DTYPES, MAX_RANK, GraphForm, Node
from stan_infer.artefacts.onnx_operations import (
    LARGEST,
    OPERATIONS,
    CannotTell,
    Taken,
    Value,
    whole,
)
from stan_infer.artefacts.parts import row_names
from stan_infer.config import StanConfig, parameter_shapes, text_flops, video_flops
from stan_infer.errors import InputError


@dataclass(frozen=True)
class Need:
    """The memory and work of one run.

    bytes: the largest sum of all values that exist at one time, constants included. work: a
    multiply-add counts as two, any other element that is written as one.
    """

    bytes: int
    work: int


_VIDEO = ("visual.", "branch.")  # prefixes of the video tower's parameters; the rest is text
_LEAST = 0.6  # of its tower's parameters that a graph must hold
_NODES = 300  # the most nodes per layer of its tower
BARE = Need(4 * 2**30, 10**13)  # allowed to a graph without a known config
_SPARE_BYTES, _SPARE_WORK = 64 * 2**20, 10**9

Inputs = Mapping[str, tuple[str, Sequence[int]]]  # name -> numpy's name of the dtype, sizes
_TYPES = {name: number for number, (name, _) in DTYPES.items() if name}


def check_operations(form: GraphForm) -> None:
    """Refuse a graph with an operation that the exporters do not write. Raises InputError."""
    for node in form.nodes:
        if node.op not in OPERATIONS:
            raise InputError(
                f"{form.name} has the operation {node.op[:80]!r}, which no graph written by "
                "stan_infer has: it was not opened; export the checkpoint again"
            )


def check_weights(form: GraphForm, config: StanConfig, role: str) -> None:
    """Refuse a graph with far fewer weights, or far more nodes, than a model of this config has.

    The config decides what a graph may take when it runs, and comes from the same stranger: so a
    small file may not come with the config of a large model. All graphs that we export hold 0.86 to
    1.09 of their tower's parameters, in 28 to 70 nodes per layer. Raises InputError.
    """
    if role not in ("video", "text"):
        return
    wanted = sum(
        prod(shape)
        for name, shape in parameter_shapes(config).items()
        if name.startswith(_VIDEO) == (role == "video")
    )
    found = _elements(form)
    layers = config.text_layers if role == "text" else config.layers + config.branch_layers
    most_nodes = _NODES * (layers + 4)
    if found < _LEAST * wanted or len(form.nodes) > most_nodes:
        raise InputError(
            f"{form.name} has {found} weights in {len(form.nodes)} nodes; a {role} tower of the "
            f"config in manifest.json has {wanted}, in at most {most_nodes}: export the "
            "checkpoint again"
        )


def check_constants(form: GraphForm) -> None:
    """Refuse a graph in which values that depend on constants only are large.

    A runtime computes those when it opens the graph. In our graphs they are weights of 8 and 16
    bits, converted to fp32, and little else. Raises InputError.
    """
    known, nodes = {*form.weights, ""}, []
    for node in form.nodes:
        if known.issuperset(node.inputs):
            nodes.append(node)
            known.update(node.outputs)
    weights = sum(w.bytes for w in form.weights.values())
    most = Need(2 * weights + 4 * _elements(form) + _SPARE_BYTES, _elements(form) + _SPARE_WORK)
    need = measure(replace(form, nodes=tuple(nodes), outputs=()), {})
    if need.bytes > most.bytes or need.work > most.work:
        raise InputError(
            f"{form.name} has constants that come to {need.bytes / 2**20:.0f} MiB and "
            f"{need.work / 1e9:.1f} GFLOP; its weights come to {weights / 2**20:.0f} MiB: it was "
            "not opened; export the checkpoint again"
        )


def _elements(form: GraphForm) -> int:
    return sum(prod(w.dims) for w in form.weights.values())


def check_need(form: GraphForm, config: StanConfig | None, inputs: Inputs) -> None:
    """Refuse a graph that takes much more for these input sizes than a model of this config.

    config: None for a bare graph, which may take as much as BARE. Raises InputError.
    """
    need = measure(form, inputs)
    most = BARE if config is None else allowed(form, config, inputs)
    if need.bytes > most.bytes or need.work > most.work:
        sizes = ", ".join(f"{name} {list(dims)}" for name, (_, dims) in inputs.items())
        raise InputError(
            f"{form.name} takes {need.bytes / 2**20:.0f} MiB and {need.work / 1e9:.1f} GFLOP for "
            f"{sizes}; such a model needs less than {most.bytes / 2**20:.0f} MiB and "
            f"{most.work / 1e9:.1f} GFLOP: it was not run; export the checkpoint again"
        )


def allowed(form: GraphForm, config: StanConfig, inputs: Inputs) -> Need:
    """The most that a graph of this config may take: three times the model's need, and a constant.

    All graphs that we export take 0.8 to 1.3 times `video_flops` and `text_flops`, and at most 0.9
    times the bytes that are computed here, before the factor of three.
    """
    c, floats, work = config, 0, 0
    rows = row_names(c)[0]  # of the trunk, and into the branch
    for name, (_, dims) in inputs.items():
        is_trunk = name == "frames" and rows in form.outputs
        if name in ("video", rows) or is_trunk:  # a part may take as much as the whole
            b, t = (dims[0], 1) if is_trunk else (dims[0], dims[1])
            n = 1 + c.patches
            token = c.mlp_width + (8 + c.branch_layers) * c.width + 2 * c.heads * max(n, t)
            floats += b * t * (n * token + 2 * 3 * c.image_size**2)
            work += b * video_flops(c, t)
        elif name == "input_ids" and len(inputs) == 1:
            q, length = dims
            token = c.text_mlp_width + 8 * c.text_width + 2 * c.text_heads * length
            floats += q * length * token
            work += q * text_flops(c, length)
        elif name == "frames":
            # What a resize by two matrix products per frame takes. Our graph gathers rows and
            # columns instead: from 224 x 224 pixels on, a third of the bytes, 6 % of the work.
            t, h, w = dims[0], dims[1], dims[2]
            r = c.short_side
            scale = r / max(1, min(h, w))
            wide, high = int(w * scale) + 1, int(h * scale) + 1
            floats += 4 * (t * 3 * (h * w + high * w + high * wide) + 4 * (high * h + wide * w))
            work += 2 * t * 3 * (high * h * w + high * wide * w) + 40 * (high * h + wide * w)
        elif name == "frame_embeds":
            (q, length), (b, t) = inputs["input_ids"][1], dims[:2]
            floats += 6 * q * b * length * t + 4 * (q * length + b * t) * c.embed_dim
            work += 2 * q * b * length * t * (c.embed_dim + 10)
    weights = sum(w.bytes for w in form.weights.values())
    # While the graph runs, weights of 16 or 8 bits also exist in fp32.
    weights += sum(4 * prod(w.dims) for w in form.weights.values() if DTYPES[w.dtype][1] < 32)
    return Need(3 * 4 * floats + weights + _SPARE_BYTES, 3 * work + _SPARE_WORK)


def measure(form: GraphForm, inputs: Inputs) -> Need:
    """Work out what one run with these inputs, which are all of the graph's, takes.

    Raises InputError for a graph whose sizes do not follow from those of its inputs, or contradict
    each other.
    """
    values: dict[str, Value] = {
        name: Value(w.dtype, w.dims, whole(w.value, w.dtype, computed=False), folds=True)
        for name, w in form.weights.items()
    }
    for name, (dtype, dims) in inputs.items():
        if dtype not in _TYPES:
            raise InputError(f"{form.name}: its input {name[:80]!r} cannot be {dtype[:40]!r}")
        values[name] = Value(_TYPES[dtype], tuple(dims))
    last = {name: i for i, node in enumerate(form.nodes) for name in node.inputs}
    last |= dict.fromkeys(form.outputs, len(form.nodes))
    alive = sum(v.bytes for v in values.values())
    peak, work = alive, 0
    for i, node in enumerate(form.nodes):
        try:
            taken = [values[name] if name else None for name in node.inputs]
            made, effort = _run(node, taken)
            if len(made) < len(node.outputs) or len(set(node.outputs)) < len(node.outputs):
                raise CannotTell(f"it has {len(node.outputs)} outputs")
        except (CannotTell, KeyError, IndexError, ValueError, TypeError, ArithmeticError) as e:
            given = [values[n].dims if n in values else n[:40] or None for n in node.inputs[:4]]
            raise InputError(
                f"{form.name}: the sizes of a node {node.op} do not follow from its inputs {given} "
                f"({type(e).__name__}: {str(e)[:80]}): export the checkpoint again"
            ) from e
        work += effort
        for name, value in zip(node.outputs, made, strict=False):
            if not name:
                continue
            if name in values:
                raise InputError(f"{form.name} computes the value {name[:80]!r} twice")
            if value.elements >= LARGEST or len(value.dims) > MAX_RANK:
                raise InputError(
                    f"{form.name}: a node {node.op} makes a value of sizes {value.dims}, more than "
                    "any model needs: it was not run; export the checkpoint again"
                )
            values[name] = value
            alive += value.bytes
            work += value.elements
        peak = max(peak, alive)
        for name in {*node.inputs, *node.outputs}:
            # A runtime computes values that depend on constants only once, and keeps them.
            if name in values and last.get(name, i) == i and not values[name].folds:
                if name not in inputs:
                    alive -= values[name].bytes
                last[name] = -1
    return Need(peak, work)


def _run(node: Node, taken: Taken) -> tuple[list[Value], int]:
    made, effort = OPERATIONS[node.op](node, taken)
    folds = all(v is None or v.folds for v in taken)
    if any(n < 0 for v in made for n in v.dims):
        raise CannotTell("a size below 0")
    if any(v.dtype not in DTYPES for v in made):
        raise CannotTell("an unknown type")
    return [Value(v.dtype, v.dims, v.known, folds) for v in made], effort
