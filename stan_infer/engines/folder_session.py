"""A session of an exported folder: everything that does not depend on the runtime."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stan_infer.artefacts.checked_graph import CheckedGraph, checked_graph
from stan_infer.artefacts.config_note import CONFIG_KEY, is_of_config
from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.onnx_file import GraphForm
from stan_infer.artefacts.onnx_sizes import Inputs
from stan_infer.artefacts.parts import PARTS, row_names
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.config import StanConfig
from stan_infer.engines.graph import OpenGraph, Signature, TensorType
from stan_infer.engines.inputs import clip_array, normalised, token_ids, until_end
from stan_infer.engines.repeated_facts import check_repeated
from stan_infer.engines.session import TEXT_CHUNK, Session
from stan_infer.engines.stream import Parts
from stan_infer.errors import CheckError, InputError

if TYPE_CHECKING:
    from stan_infer.artefacts.manifest import Port

MAX_FRAMES = 2**18  # of one call of a trunk graph: 4096 clips of 64 frames

_MAX_BATCH = 4096  # as an export writes it
_MAX_FILLED = 64  # clips of a graph of a fixed batch, of which a stream uses one


class FolderSession(Session):
    """An exported folder in a runtime; see engines.session.Session. An engine defines `open`."""

    engine: ClassVar[str]
    reduced: ClassVar[tuple[str, ...]] = ()  # other precisions in which it can run an fp32 graph
    _any_length = False  # whether another number of tokens costs no preparation

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the folder's video and text graphs, of which one may be absent.

        precision: the folder's, which is also the default, or one in `reduced` for an fp32 folder.
        threads: CPU threads; None leaves it to the runtime. Raises InputError and MissingError.
        """
        self._artefact, self._device, self._precision = artefact, device, precision
        check_repeated(artefact)
        graphs = {role: artefact.graph(role) for role in ("video", "text")}
        self._graphs = {
            role: graph for role, graph in graphs.items() if graph is not None and self.has(graph)
        }
        if not self._graphs:
            raise InputError(f"folder {artefact.path} holds neither a video nor a text graph")
        self._opened: dict[str, OpenGraph] = {}
        self._checked: dict[str, CheckedGraph] = {}
        self._own, self._threads = next(iter(self._graphs.values())), threads
        check_precision(artefact.path, self._own, precision, self.reduced)
        for graph in self._graphs.values():
            self._open_graph(graph)
        for graph in artefact.graphs:
            if graph.role not in (*graphs, *PARTS):  # which other programs run
                with checked_graph(artefact, graph) as checked:
                    _check_config(artefact, graph, checked.form)

    def _open_graph(self, graph: Graph) -> None:
        expected, precision = expected_signature(self.config, graph), self._precision
        # A folder in 8 bits has a text tower in fp32, so each graph has its own precision.
        wanted = graph.precision if precision in (None, self._own.precision) else precision
        with checked_graph(self._artefact, graph) as checked:
            _check_config(self._artefact, graph, checked.form)
            checked.check_sizes(_smallest(graph, expected))
            opened = self.open(graph, checked, wanted, self._threads)
        _check_signature(expected, graph, opened.signature())
        self._opened[graph.role], self._checked[graph.role] = opened, checked

    @abstractmethod
    def open(
        self, graph: Graph, checked: CheckedGraph, precision: str, threads: int | None
    ) -> OpenGraph:
        """Open one graph of the folder on this device; checked: its file, which was checked."""

    def has(self, graph: Graph) -> bool:
        """Whether this engine can open that graph; the session leaves out one that it cannot."""
        return True

    @property
    def config(self) -> StanConfig:
        """The model's config."""
        return self._artefact.config

    def _video(self, video: Any) -> Any:
        graph, _ = self._role("video")
        clips = clip_array(self.config, video, functools.partial(self._check_clips, graph))
        output, wanted = self._check_clips(graph, clips.shape, str(clips.dtype))
        if clips.dtype != graph.inputs[0]["dtype"]:
            clips = normalised(self.config, clips)
        if missing := wanted[0] - len(clips):  # a graph of a fixed batch
            clips = np.concatenate([clips, clips[-1:].repeat(missing, 0)])
        return self._run("video", output, {"video": clips}, wanted)[: len(clips) - missing]

    def _text(self, texts: Any) -> Any:
        ids = token_ids(self.config, texts, self.vocabulary)
        graph, _ = self._role("text")
        check_size(graph, "length", ids.shape[1], "token ids are {} long")
        name = "token_embeds" if self.keeps_rows else "text_embeds"
        row = (ids.shape[1],) if self.keeps_rows else ()
        feeds = ids.astype(np.int32)
        chunk = min(TEXT_CHUNK, graph.dims.get("batch", (1, TEXT_CHUNK))[1])
        parts = []
        for i in range(0, len(feeds), chunk):
            part = feeds[i : i + chunk]
            if self._any_length and not self.keeps_rows:
                part = until_end(part, graph.dims.get("length", (part.shape[1],))[0])
            wanted = (len(part), *row, self.config.embed_dim)
            parts.append(self._run("text", name, {"input_ids": part}, wanted))
        return np.concatenate(parts)

    @property
    def vocabulary(self) -> Path | None:
        name = "tokenizer.json"
        return self._artefact.file(name) if self._artefact.has(name) else None

    def describe(self) -> dict[str, Any]:
        role = next(iter(self._graphs))
        record = {
            "engine": self.engine,
            "device": self._device,
            "precision": self._precision or self._graphs[role].precision,
        }
        return record | self._opened[role].describe() | self._quantised(role)

    def _quantised(self, role: str) -> dict[str, Any]:
        """Of a graph in 8 bits: how many linears are so in the file, and how many run so here."""
        if self._graphs[role].precision not in EIGHT_BITS:
            return {}
        entry = next(g for g in self._artefact.manifest["graphs"] if g["role"] == role)
        in_file = (entry.get("quant") or {}).get("linears")
        return {"linears_in_8_bits": self._linears, "linears_in_8_bits_in_file": in_file}

    @functools.cached_property
    def _linears(self) -> int | None:
        """Linears of the first graph that run in 8 bits; counting them may take a while."""
        return next(iter(self._opened.values())).count_8_bits()

    def _parts(self) -> Parts:
        """See Session.stream; the two graphs are opened when they are first needed."""
        self._open_parts("--split")
        return _FolderParts(self)

    def _open_parts(self, options: str) -> None:
        """Open trunk and branch; options: of the export that writes what this engine needs."""
        for role in PARTS:
            graph = self._artefact.graph(role)
            if graph is None:
                raise InputError(
                    f"folder {self._artefact.path} has no {role}.onnx, which a stream needs: "
                    f"stan-infer export CKPT -o {self._artefact.path} {options}"
                )
            if role not in self._opened:
                self._open_graph(graph)
                self._graphs[role] = graph

    def _free(self) -> None:
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
        self._checked.clear()

    def _check_clips(
        self, graph: Graph, shape: tuple[int, ...], dtype: str
    ) -> tuple[str, tuple[int, ...]]:
        """Refuse clips that the video graph does not take; return the output's name and shape.

        Before it runs, fewer clips than the graph takes are filled up by repeating the last, and
        clips in uint8 are normalised for a graph for floats.
        """
        if dtype != "uint8" and graph.inputs[0]["dtype"] == "uint8":
            raise InputError(
                f"video is {dtype}; this exported folder takes uint8: give the pixels, or export "
                "with --input float"
            )
        batch = max(shape[0], graph.dims["batch"][0])
        check_size(graph, "batch", batch, "video has {} clips")
        check_size(graph, "frames", shape[1], "video has {} frames")
        if self.keeps_rows:
            return "frame_embeds", (batch, shape[1], self.config.embed_dim)
        return "video_embeds", (batch, self.config.embed_dim)

    def _run(
        self, role: str, output: str, feeds: Mapping[str, np.ndarray], wanted: tuple[int, ...]
    ) -> np.ndarray:
        """Run a graph unless it takes too much for these sizes; check the sizes of the output."""
        return self._run_all(role, feeds, {output: wanted})[output]

    def _run_all(
        self,
        role: str,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, tuple[int, ...]],
    ) -> dict[str, np.ndarray]:
        graph, opened = self._role(role)
        inputs = {name: (value.dtype.name, value.shape) for name, value in feeds.items()}
        self._checked[role].check_sizes(inputs)
        found = opened.run(feeds, list(outputs))
        for name, wanted in outputs.items():
            check_output(graph, name, found[name], wanted)
        return found

    def _role(self, role: str) -> tuple[Graph, OpenGraph]:
        if role not in self._graphs:
            raise InputError(f"folder {self._artefact.path} holds no {role} graph")
        return self._graphs[role], self._opened[role]


class _FolderParts(Parts):
    """The graphs trunk and branch of a folder; rows are numpy arrays."""

    def __init__(self, session: FolderSession) -> None:
        self._session, config = session, session.config
        self._names = row_names(config)
        self._row = (1 + config.patches, config.width)
        trunk, branch = (session._role(role)[0] for role in PARTS)
        self.windows, self.at_once = branch.dims["frames"], trunk.dims["frames"][1]
        if (least := branch.dims["batch"][0]) > _MAX_FILLED:
            raise InputError(
                f"{branch.file} takes no fewer than {least} clips at once, and a stream has one at "
                f"a time; up to {_MAX_FILLED} are filled up: export it again with a smaller --batch"
            )

    def check_open(self) -> None:
        self._session._check_open()

    def trunk(self, frames: np.ndarray) -> list[np.ndarray]:
        session = self._session
        graph, _ = session._role("trunk")
        if graph.inputs[0]["dtype"] != "uint8":
            frames = normalised(session.config, frames[None])[0]
        outputs = dict.fromkeys(self._names, (len(frames), *self._row))
        found = session._run_all("trunk", {"frames": frames}, outputs)
        return [found[name] for name in self._names]

    def branch(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        session, (b, t) = self._session, rows[0].shape[:2]
        graph, _ = session._role("branch")
        missing = max(0, graph.dims["batch"][0] - b)  # of a fixed batch
        feeds = {}
        for name, x in zip(self._names, rows, strict=True):
            feeds[name] = np.concatenate([x, *[x[-1:]] * missing]) if missing else x
        e = session.config.embed_dim
        name, wanted = ("frame_embeds", (t, e)) if session.keeps_rows else ("video_embeds", (e,))
        return session._run("branch", name, feeds, (b + missing, *wanted))[:b]

    def room(self, frames: int) -> list[np.ndarray]:
        return [np.empty((frames, *self._row), np.float32) for _ in self._names]


def check_precision(
    path: Path, graph: Graph, precision: str | None, reduced: Sequence[str]
) -> None:
    """Raise InputError for a precision other than the graph's, or for fp32 one of `reduced`."""
    if precision in (None, graph.precision):
        return
    if graph.precision == "fp32" and precision in reduced:
        return
    how = f"export it again with --precision {precision}"
    if precision in EIGHT_BITS:
        how = f"stan-infer calibrate {path} --precision {precision} --videos DIR -o OUT, give OUT"
    raise InputError(f"folder {path} is in {graph.precision}, not {precision}: {how}")


def check_output(graph: Graph, output: str, values: Any, wanted: tuple[int, ...]) -> None:
    """Raise InputError unless an output has the sizes [B, E], [B, T, E] or [Q, L, E] `wanted`."""
    if tuple(values.shape) != wanted:
        raise InputError(
            f"{graph.file} returned {output} of sizes {list(values.shape)} for {wanted[0]} rows; "
            f"the model gives {list(wanted)}: export the checkpoint again"
        )


def _smallest(graph: Graph, expected: Signature) -> Inputs:
    """Return dtype and sizes of the smallest inputs that a graph takes, by name."""
    axes = {"batch": 0, ("length" if graph.role == "text" else "frames"): 1}
    low = {i: graph.dims.get(name, (1, 1))[0] for name, i in axes.items()}
    return {
        name: (dtype, [low.get(i, 1) if n is None else n for i, n in enumerate(sizes)])
        for name, (dtype, sizes) in expected.inputs.items()
    }


def _check_config(artefact: Artefact, graph: Graph, form: GraphForm) -> None:
    """Raise CheckError if the manifest's config is not the one whose hash the graph holds."""
    # The hash is needed because shapes do not show head, temperature or sampling.
    if not is_of_config(form.metadata.get(CONFIG_KEY), artefact.manifest):
        raise CheckError(
            f"folder {artefact.path}: 'model' in manifest.json is not what {graph.file} was "
            "exported with: it was changed since; export the checkpoint again"
        )


def check_size(graph: Graph, name: str, size: int, sentence: str) -> None:
    """Raise InputError for a size that the manifest forbids; sentence: names it, {} is the size."""
    low, high = graph.dims.get(name, (size, size))
    if not low <= size <= high:
        allowed = f"{low}" if low == high else f"{low} to {high}"
        raise InputError(f"{sentence.format(size)}; this exported folder takes {allowed}")


def _check_signature(wanted: Signature, graph: Graph, got: Signature) -> None:
    """Raise InputError unless names, types and sizes fit the config; more outputs are allowed."""
    outputs = {name: v for name, v in got.outputs.items() if name in wanted.outputs}
    told = Signature(_told(graph.inputs), _told(graph.outputs))
    if told.inputs != got.inputs or any(
        got.outputs.get(name) != value for name, value in told.outputs.items()
    ):
        raise InputError(
            f"{graph.file} is not the graph that manifest.json describes: it has {got.inputs} -> "
            f"{got.outputs}, not {told.inputs} -> {told.outputs}; export the checkpoint again"
        )
    if (got.inputs, outputs) != (wanted.inputs, wanted.outputs):
        raise InputError(
            f"{graph.file} does not fit the config in manifest.json: it has "
            f"{got.inputs} -> {outputs}, which should be {wanted.inputs} -> {wanted.outputs}; "
            "export the checkpoint again"
        )


def _told(ports: Sequence[Port]) -> dict[str, TensorType]:
    """What a manifest says of inputs or outputs."""
    return {
        port["name"]: (
            port["dtype"],
            tuple(n if isinstance(n, int) else None for n in port["shape"]),
        )
        for port in ports
    }


def expected_signature(config: StanConfig, graph: Graph) -> Signature:
    """Inputs and outputs that a graph of this config has; an axis of one allowed size is fixed."""

    def axis(name: str, high: int | None = None) -> int | None:
        low, top = graph.dims.get(name, (1, high))
        if high is not None and not 1 <= low <= (top or 0) <= high:
            raise InputError(
                f"{graph.file}: manifest.json gives {name} {low} to {top}; the model has 1 to "
                f"{high}: export the checkpoint again"
            )
        return low if low == top else None

    s, e, batch = config.image_size, config.embed_dim, axis("batch", _MAX_BATCH)
    if graph.role == "text":
        length = axis("length", config.context_positions)
        return Signature(
            {"input_ids": ("int32", (batch, length))},
            {
                "text_embeds": ("float32", (batch, e)),
                "token_embeds": ("float32", (batch, length, e)),
            },
        )
    rows, row = row_names(config), (1 + config.patches, config.width)
    is_uint8 = graph.inputs[0]["dtype"] == "uint8"
    pixels, dtype = ((s, s, 3), "uint8") if is_uint8 else ((3, s, s), "float32")
    if graph.role == "trunk":
        count = axis("frames", MAX_FRAMES)
        outputs = {name: ("float32", (count, *row)) for name in rows}
        return Signature({"frames": (dtype, (count, *pixels))}, {**outputs})
    frames = axis("frames", config.max_frames)
    embeds: dict[str, TensorType] = {
        "video_embeds": ("float32", (batch, e)),
        "frame_embeds": ("float32", (batch, frames, e)),
    }
    if graph.role == "branch":
        inputs = {name: ("float32", (batch, frames, *row)) for name in rows}
        return Signature({**inputs}, embeds)
    return Signature({"video": (dtype, (batch, frames, *pixels))}, embeds)
