"""Open the candidates that `bench` compares: each engine and precision of what is measured.

A candidate that cannot run here becomes a row with the reason, and the others still run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.benchmarking.interleave import Candidate
from stan_infer.benchmarking.options import BenchOptions
from stan_infer.benchmarking.timing import Clock, CudaClock, WallClock
from stan_infer.config import StanConfig
from stan_infer.engines.bare_graph import open_bare
from stan_infer.engines.open import CHECKPOINT, PLANS, engine_named, graph_engines, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, MissingError
from stan_infer.system.packages import require
from stan_infer.tensorrt_plans.plan_file import read_plan

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

# A candidate, its session (none for a bare graph), and how another process opens it.
_Opened = tuple[Candidate, Session | None, dict[str, Any]]


@dataclasses.dataclass
class Candidates:
    """What was opened: `opened` and `origins` have an entry for each candidate.

    absent: rows with `refused`, of candidates that cannot run here.
    """

    side: int = 0  # pixels of a frame
    config: StanConfig | None = None  # None: a bare graph
    opened: list[Candidate] = dataclasses.field(default_factory=list)
    # How another process opens each candidate, see memory.peak_memory.
    origins: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    absent: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _sessions: ExitStack = dataclasses.field(default_factory=ExitStack)

    def add(self, open_one: Callable[[str, Any], _Opened], engine: str, precision: Any) -> None:
        """Open one more candidate by open_one(engine, precision).

        Its MissingError becomes a row of `absent`. precision: a word, or None for the only one.
        """
        try:
            candidate, session, origin = open_one(engine, precision)
        except MissingError as e:
            self.absent.append({"engine": engine, "precision": precision, "refused": str(e)})
            return
        self.opened.append(candidate)
        self.origins.append({"engine": engine, "precision": precision, **origin})
        if session is not None:
            self._sessions.callback(session.close)

    def check(self) -> Candidates:
        """Return itself. Raises MissingError, with the first reason, if no candidate was opened."""
        if not self.opened:
            raise MissingError(self.absent[0]["refused"])
        return self

    def close(self) -> None:
        """Close every session."""
        self._sessions.close()


def open_model(
    model: Stan,
    origin: Mapping[str, Any],
    options: BenchOptions,
    *,
    device: str,
    threads: int,
    folder: Path,
    say: Callable[[str], None],
) -> Candidates:
    """Candidates of a loaded model; the first is always eager in fp32, the baseline of all ratios.

    origin: the model for another process, {"source": file} or {"preset": name, ...}. folder: gets
    a folder per exported precision. Raises MissingError if the baseline cannot run.
    """
    candidates = Candidates(model.config.image_size, model.config)
    precisions, calibration = options.precisions, options.calibration

    def open_one(engine: str, precision: str) -> _Opened:
        if precision in EIGHT_BITS:
            assert calibration is not None  # _open of `run` has checked it
            return _open_calibrated(model, origin, calibration, engine, precision, device, threads)
        entry = engine_named(engine)
        entry.check_precision(precision, device)
        if entry.takes == CHECKPOINT:
            session = open_session(model, engine, device=device, precision=precision)
            return _candidate(engine, session), session, {**origin, "device": device}
        where = folder / precision
        if not where.exists():
            from stan_infer.export.export_model import export_model

            export_model(model, where, precision=precision, tower="video", progress=say)
        if entry.takes == PLANS:
            session = _open_built(where, engine, device, options, say)
        else:
            session = open_session(where, engine, device=device, threads=threads)
        return _candidate(engine, session), session, {"source": str(where), "device": device}

    candidates.add(open_one, "eager", "fp32")
    candidates.check()
    for precision in precisions or ["fp32"]:
        for engine in options.engines:
            if engine_named(engine).needs_gpu and not precisions:
                candidates.add(open_one, engine, "fp16")
            elif (engine, precision) != ("eager", "fp32"):
                candidates.add(open_one, engine, precision)
    return candidates


def _open_calibrated(
    model: Stan,
    origin: Mapping[str, Any],
    folder: Path,
    engine: str,
    precision: str,
    device: str,
    threads: int,
) -> _Opened:
    """Open one engine in 8 bits; folder: what `calibrate` wrote of this checkpoint."""
    from stan_infer.artefacts.calibration_file import calibration_of, fp8_scales

    source, weights = origin["source"], origin["settings"].get("weights")
    if "scales" in engine_named(engine).options:
        scales = fp8_scales(folder, source, model.config, weights)
        session = open_session(model, engine, device=device, precision=precision, scales=scales)
        how = {**origin, "device": device, "calibration": str(folder)}
        return _candidate(engine, session), session, how
    if engine not in graph_engines():
        raise MissingError(
            f"engine {engine} runs the calibrated folder alone: stan-infer bench {folder} "
            f"--engine {engine}"
        )
    calibration_of(folder, precision, source, model.config, weights)
    session = open_session(folder, engine, device=device, precision=precision, threads=threads)
    return _candidate(engine, session), session, {"source": str(folder), "device": device}


def open_folder(source: str, options: BenchOptions, *, device: str, threads: int) -> Candidates:
    """Candidates of an exported folder, which has no eager mode: the first is the baseline.

    source: the folder, or a plan in it, which the plan's engine then runs. Raises MissingError if
    no candidate can run.
    """
    candidates = Candidates()
    plan = Path(source) if source.endswith(".plan") else None
    owner = str(plan.absolute().parent.parent) if plan else source
    own = read_plan(plan, check_hash=False).engine if plan else None
    settings = options.settings or None

    def open_one(engine: str, precision: str | None) -> _Opened:
        place = source if engine == own else owner
        session = open_session(
            place, engine, device=device, precision=precision, settings=settings, threads=threads
        )
        candidates.config, candidates.side = session.config, session.config.image_size
        return _candidate(engine, session), session, {"source": place, "device": device}

    wanted: list[str | None] = [*options.precisions] or [None]
    for precision in wanted:
        for engine in options.engines:
            candidates.add(open_one, engine, precision)
    return candidates.check()


def _open_built(
    folder: Path,
    engine: str,
    device: str,
    options: BenchOptions,
    say: Callable[[str], None],
) -> Session:
    """Open a session on a plan, which is built if the cache has none."""
    from stan_infer.benchmarking.cached_plans import add_plan

    plan = add_plan(folder, engine, options.batches, options.frames, say)
    try:
        return open_session(folder, engine, device=device)
    except MissingError as e:
        raise MissingError(f"{plan.path.name} was built and cannot run here: {e}") from e


def open_onnx(path: Path, *, engines: Sequence[str], device: str, threads: int) -> Candidates:
    """Candidates of a bare video graph, which takes uint8 [B, T, S, S, 3].

    Its first output is compared. Without a config its FLOPs are not known. Raises InputError for a
    graph with other inputs, MissingError if no engine can run it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    candidates = Candidates()

    def open_one(engine: str, _: None) -> _Opened:
        if engine not in graph_engines():
            raise MissingError(f"engine {engine} takes a checkpoint, not {path.name}")
        candidate, candidates.side = _bare(path, engine, device, threads)
        return candidate, None, {"source": str(path), "device": device}

    for engine in engines:
        candidates.add(open_one, engine, None)
    return candidates.check()


def _candidate(engine: str, session: Session) -> Candidate:
    facts = session.describe()
    clock: Clock = WallClock()
    if facts["device"].startswith("cuda") and engine not in graph_engines():
        cuda = require("torch", "timing a GPU", "gpu").cuda
        clock = CudaClock(cuda, facts["device"])
        facts["gpu"] = cuda.get_device_name(facts["device"])
    # Fetching the result from a GPU is not timed.
    embed = partial(session.embed_video, as_tensor=session.has_tensors)
    return Candidate(f"{engine} {facts['precision']}", embed, facts, clock)


def _bare(path: Path, engine: str, device: str, threads: int) -> tuple[Candidate, int]:
    """A candidate of a bare graph, and the side of its frames in pixels."""
    graph = open_bare(path, engine, [f"{path.name}.data"], device=device, threads=threads)
    signature = graph.signature()
    (name, (dtype, sizes)) = next(iter(signature.inputs.items()), ("", ("", ())))
    side = sizes[2] if len(sizes) == 5 and sizes[4] == 3 and sizes[2] == sizes[3] else None
    if len(signature.inputs) != 1 or dtype != "uint8" or side is None:
        raise InputError(
            f"{path.name} takes {signature.inputs}; bench of a bare graph needs one input, uint8 "
            "[B, T, S, S, 3]: give the exported folder"
        )
    output = next(iter(signature.outputs))
    facts = {**graph.describe(), "engine": engine, "device": device, "precision": "unknown"}
    return Candidate(engine, lambda x: graph.run({name: x}, [output])[output], facts), side
