"""The table of engines, and the functions that open a model in one of them by name.

The rest of the product knows engines only from ENGINES: commands, `doctor`, `bench`, `verify`,
error messages and help read it. A new engine needs a session in a file of its own and an entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.engines.sources import absolute, manifest_hash, owner
from stan_infer.engines.thread_count import check_threads, chosen_threads
from stan_infer.errors import CheckError, InputError, MissingError, check_word
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from stan_infer.engines.graph import OpenGraph
    from stan_infer.engines.session import Session
    from stan_infer.network.model import Stan

CHECKPOINT, FOLDER, PLANS = "a checkpoint", "an exported folder", "the plans of an exported folder"


class Trial(NamedTuple):
    """A device on which `doctor` tries an engine, and what it advises if that fails."""

    device: str  # "build" builds a plan, without a GPU
    extra: str = ""  # the extra of ours to install
    driver: str = ""  # the hardware whose driver to install


@dataclasses.dataclass(frozen=True)
class Engine:
    """One engine.

    load: imports the file of its session and returns the function that opens one. That function is
    called with the source (a checkpoint or a Stan, or an Artefact), `settings` for a checkpoint,
    and those of device, precision and `options` that the user gave.
    """

    name: str
    takes: str  # CHECKPOINT, FOLDER or PLANS
    load: Callable[[], Callable[..., Session]]
    extra: str  # the extra of ours that brings its packages
    devices: Mapping[str, tuple[str, ...]]  # kind of device -> precisions; the first are defaults
    options: tuple[str, ...] = ()  # the keys of EngineOptions that it takes
    # Imports and returns what opens a bare ONNX file: (path or bytes, name=, device=, threads=).
    load_graph: Callable[[], Callable[..., OpenGraph]] | None = None
    trials: tuple[Trial, ...] = ()

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on NVIDIA GPUs and nowhere else."""
        return list(self.devices) == ["cuda"]

    def has(self, precision: str, kind: str) -> bool:
        """Whether it computes in a precision on a kind of device."""
        return precision in self.devices.get(kind, ())

    def check_precision(self, precision: str, device: str) -> None:
        """Raise MissingError for a precision that it lacks there, with the engines that have it."""
        kind = device.partition(":")[0]
        # An unknown device is reported when it is opened.
        known = self.devices.get(kind) or next(iter(self.devices.values()))
        if precision in known:
            return
        others = [e.name for e in ENGINES.values() if e.has(precision, kind)]
        words = f"add --precision {' or '.join(known[:2])}"
        if others:
            words += f", or use --engine {' or '.join(others)}"
        raise MissingError(f"engine {self.name} has no {precision} on {kind}: {words}")


class EngineOptions(TypedDict, total=False):
    """Options of open_session that only some engines have."""

    threads: int | None  # CPU threads; torch's are those of the whole process
    yielding: bool  # idle CPU threads leave the cores to others, such as decoding processes
    graph: str  # "reference", or "fused": the rewritten network
    scales: Mapping[str, float] | None  # of the linears' inputs in fp8, by name
    calibration: str | Path | None  # the calibration.json of this checkpoint, or its folder
    auto_rebuild: bool  # build plans of another version or GPU again, which takes minutes
    provider: str | None  # cpu, cuda (the device's own), cuda-graph, tensorrt, tensorrt-rtx
    plan: Path  # the one of the folder's plans to run


def _torch() -> Callable[..., Session]:
    from stan_infer.engines.torch_session import open_torch

    return open_torch


def _compile() -> Callable[..., Session]:
    return partial(_torch(), compiled=True)


def _triton() -> Callable[..., Session]:
    from stan_infer.engines.triton_session import open_triton

    return open_triton


def _ort() -> Callable[..., Session]:
    from stan_infer.engines.ort_session import OrtSession

    return OrtSession


def _ort_graph() -> Callable[..., OpenGraph]:
    from stan_infer.engines.ort_session import OrtGraph

    return OrtGraph.open


def _openvino() -> Callable[..., Session]:
    from stan_infer.engines.ov_session import OvSession

    return OvSession


def _openvino_graph() -> Callable[..., OpenGraph]:
    from stan_infer.engines.ov_session import OvGraph

    return OvGraph.open


def _trt() -> Callable[..., Session]:
    from stan_infer.engines.trt_session import TrtSession

    return TrtSession


def _trt_rtx() -> Callable[..., Session]:
    from stan_infer.engines.trt_session import TrtRtxSession

    return TrtRtxSession


_TORCH = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")}
_ALL = ("fp32", "fp16", "bf16", *EIGHT_BITS)
_NVIDIA, _INTEL = "an NVIDIA GPU", "an Intel GPU"
# fmt: off
ENGINES = {
    e.name: e
    for e in (
        Engine(
            "eager", CHECKPOINT, _torch, "cpu", _TORCH, ("graph", "threads"),
            trials=(Trial("cpu", "cpu"), Trial("cuda", "gpu", _NVIDIA)),
        ),
        Engine("compile", CHECKPOINT, _compile, "cpu", _TORCH, ("graph", "threads")),
        Engine(
            "triton", CHECKPOINT, _triton, "gpu", {"cuda": ("fp16", "bf16", "fp8")},
            ("scales", "calibration"), trials=(Trial("cuda", "gpu", _NVIDIA),),
        ),
        Engine(
            "ort", FOLDER, _ort, "runtime",
            {"cpu": ("fp32", "fp16", *EIGHT_BITS), "cuda": _ALL},
            ("threads", "provider", "yielding"),
            load_graph=_ort_graph, trials=(Trial("cpu", "runtime"), Trial("cuda", "gpu")),
        ),
        Engine(
            "openvino", FOLDER, _openvino, "openvino", {"cpu": _ALL, "gpu": _ALL}, ("threads",),
            load_graph=_openvino_graph,
            trials=(Trial("cpu", "openvino"), Trial("gpu", driver=_INTEL)),
        ),
        Engine(
            "trt", PLANS, _trt, "trt", {"cuda": _ALL}, ("auto_rebuild", "plan"),
            trials=(Trial("cuda", "trt"),),
        ),
        Engine(
            "trt-rtx", PLANS, _trt_rtx, "trt-rtx", {"cuda": _ALL}, ("auto_rebuild", "plan"),
            trials=(Trial("build", "trt-rtx"), Trial("cuda", driver=_NVIDIA)),
        ),
    )
}
# fmt: on
# Engines that lack these ignore them, because one command may open several engines.
_IGNORED = ("threads", "auto_rebuild", "yielding")


def engine_named(name: str) -> Engine:
    """The entry of an engine; InputError with the nearest name for an unknown one."""
    check_word("engine", name, ENGINES)
    return ENGINES[name]


def graph_engines() -> list[str]:
    """Names of the engines that open a bare ONNX file."""
    return [e.name for e in ENGINES.values() if e.load_graph]


def listed() -> str:
    """The names of all engines by what they take, for the command line's help."""
    ours = [e.name for e in ENGINES.values() if e.takes == CHECKPOINT]
    others = [name for name in ENGINES if name not in ours]
    return f"{', '.join(ours)} (checkpoint); {', '.join(others)} (exported folder)"


def devices_listed() -> str:
    """The devices of all engines, and those that only some have, for the command line's help."""
    own = [
        f"for {e.name} {', '.join(e.devices)}"
        for e in ENGINES.values()
        if not e.devices.keys() <= {"cpu", "cuda"}
    ]
    return "; ".join(["cpu, cuda, cuda:1", *own])


def open_session(
    source: str | Path | Stan,
    engine: str | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Unpack[EngineOptions],
) -> Session:
    """Open a model for inference. Nothing falls back: what was asked for runs, or is an error.

    Args:
        source: a checkpoint, an open_clip name and tag or a loaded Stan for "eager", "compile" and
            "triton"; an exported folder for the others, or a .plan in one; any of these by its
            name on the hub, "hf:OWNER/NAME".
        engine: None is "ort" for a folder, that of a plan, "eager" for anything else; describe() of
            the session gives it. "compile" is eager under torch.compile, which compiles at the
            first run of a shape. "triton" runs our kernels, "trt" and "trt-rtx" the plans of a
            folder, all on an NVIDIA GPU; "ort" and "openvino" run a folder.
        device: "cpu", "cuda", "cuda:1"; None is the one that engine and provider need, or the CPU.
        precision: of weights and linears; None is fp32 for a checkpoint (fp16 for "triton") and
            that of the export for a folder; "openvino" also runs an fp32 folder in bf16, if the CPU
            has it.
        settings: StanConfig fields that a checkpoint's shapes do not determine, and `weights`; see
            load_model.
        options: see EngineOptions; ENGINES says which engine has which. threads, yielding and
            auto_rebuild are ignored by engines without them.

    Returns:
        Session: close it, or use it in a `with` block.

    Raises:
        InputError: a wrong source, option or word, or an option of another engine.
        MissingError: a package or device that is not here, with what to do.

    Example:
        >>> import stan_infer as si
        >>> with si.open_session("examples/motion/motion.safetensors") as session:
        ...     session.config.frames, session.config.image_size
        (8, 64)
    """
    from stan_infer.checkpoints.hub import located

    source = located(source)
    found = _open(source, engine, device, precision, settings, options)
    # Where it is unpickled may be another folder.
    words = {"device": device, "precision": precision, "settings": settings, **options}
    if options.get("calibration") is not None:
        words["calibration"] = absolute(str(options["calibration"]))
    if isinstance(source, (str, Path)):
        source = absolute(source)
    found.reopened_by(_reopen, source, engine, words, manifest_hash(source))
    return found


def _reopen(
    source: Path | str | Stan, engine: str | None, words: dict[str, Any], manifest: str | None
) -> Session:
    """Open a session that was pickled; CheckError for a folder that was exported anew since."""
    if manifest is not None and manifest_hash(source) != manifest:
        raise CheckError(
            f"{source} is not what it was when this session was pickled: open it with open_session"
        )
    return open_session(source, engine, **words)


def _open(
    source: str | Path | Stan,
    engine: str | None,
    device: str | None,
    precision: str | None,
    settings: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Session:
    given: dict[str, Any] = dict(options)
    check_threads(given.get("threads"))
    if isinstance(source, (str, Path)) and str(source).endswith(".plan"):
        if given.get("provider") is not None:
            raise InputError(
                f"provider {given['provider']} is a choice of engine ort; {source} is a plan"
            )
        given["plan"] = Path(source)
        engine, source = owner(given["plan"], engine, settings)
    is_folder = isinstance(source, (str, Path)) and is_exported(source)
    entry = engine_named(engine or ("ort" if is_folder else "eager"))
    given = _options(entry, given)
    given |= {k: v for k, v in (("device", device), ("precision", precision)) if v is not None}
    if entry.takes == CHECKPOINT:
        if is_folder:
            raise InputError(
                f"{source} is a folder; engine {entry.name} takes a checkpoint: "
                f"give the checkpoint file, or --engine {' or '.join(graph_engines())}"
            )
        from stan_infer.checkpoints.load import require_torch

        require_torch(f"engine {entry.name}", entry.extra, source, settings)
        return entry.load()(source, settings=settings, **given)
    if not is_folder:
        name = source if isinstance(source, (str, Path)) else "CHECKPOINT"
        raise InputError(
            f"engine {entry.name} takes an exported folder, not {name}: "
            f"stan-infer export {name} -o FOLDER, then give FOLDER"
        )
    if settings:
        raise InputError(
            "--set and --weights belong to a checkpoint; a folder was exported with its own"
        )
    assert isinstance(source, (str, Path))
    return _open_folder(entry, source, given)


def open_graph(graph: Path | bytes, engine: str = "ort", **options: Any) -> OpenGraph:
    """Open one ONNX file, or its bytes, in an engine of graph_engines(); the file is not checked.

    options: name (of the graph in errors), device, threads, and those of the engine. Raises
    InputError for a graph that the runtime refuses, MissingError where runtime or device is not
    here.
    """
    load = engine_named(engine).load_graph
    if load is None:
        raise InputError(f"engine {engine} opens no graphs: use {' or '.join(graph_engines())}")
    return load()(graph, **{"threads": chosen_threads(), **options})


def _options(entry: Engine, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from the default; InputError for one of other engines."""
    found = {}
    for name, value in given.items():
        if name not in EngineOptions.__annotations__:
            raise TypeError(f"open_session() has no option {name}")
        if value in (None, False) or (name, value) == ("graph", "reference"):
            continue
        if name in entry.options:
            found[name] = value
        elif name not in _IGNORED:
            owners = [e.name for e in ENGINES.values() if name in e.options]
            word = "engine" if len(owners) == 1 else "engines"
            shown = f"{name} {value}" if isinstance(value, str) else name
            raise InputError(
                f"{shown} is a choice of {word} {' and '.join(owners)}, not {entry.name}"
            )
    return found


def _open_folder(entry: Engine, folder: str | Path, given: Mapping[str, Any]) -> Session:
    from stan_infer.artefacts.folder import read_artefact

    artefact = read_artefact(folder, held=() if entry.takes == PLANS else ("video", "text"))
    try:
        if entry.takes == PLANS:
            require("torch", f"engine {entry.name}", "gpu")
        return entry.load()(artefact, **given)
    except MissingError:
        if entry.takes == PLANS:
            from stan_infer.tensorrt_plans.plan_file import check_plans, read_plan

            # A plan that was changed is reported before what is missing to run it.
            plan = given.get("plan")
            check_plans(artefact, entry.name, read_plan(plan, check_hash=False) if plan else None)
        raise
