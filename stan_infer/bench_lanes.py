"""Open what `bench` compares: engines x precisions of a model, a folder or a bare graph.

What cannot run here becomes a row that says why, and the others still run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.bench import Lane
from stan_infer.clock import Clock, CudaClock, WallClock
from stan_infer.config import StanConfig
from stan_infer.engines import ENGINES, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, MissingError, nearest, require

if TYPE_CHECKING:
    from stan_infer.model import Stan

# Names that users know and that this version does not have.
ABSENT = {
    "triton": "engine triton is not part of this version; use eager, compile, ort or openvino",
    "trt": "engine trt is not part of this version; use eager, compile, ort or openvino",
    "trt-rtx": "engine trt-rtx is not part of this version; use eager, compile, ort or openvino",
}


@dataclasses.dataclass
class Contest:
    """What was opened. `absent` are rows with `refused`; sessions align with lanes."""

    lanes: list[Lane]
    sessions: list[Session | None]  # None: a bare graph
    origins: list[dict[str, Any]]  # how another process opens the lane: see bench_memory
    absent: list[dict[str, Any]]
    side: int
    config: StanConfig | None

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions:
            if session is not None:
                session.close()


def check_engines(names: Sequence[str]) -> list[str]:
    """Return the names without repeats; InputError for one that nobody knows."""
    known = [*ENGINES, *ABSENT]
    for name in names:
        if name not in known:
            raise InputError(
                f"engine '{name}' is unknown{nearest(name, ENGINES)} ({', '.join(known)})"
            )
    return list(dict.fromkeys(names))


def open_model(
    model: Stan,
    origin: Mapping[str, Any],
    *,
    engines: Sequence[str],
    precisions: Sequence[str],
    device: str,
    threads: int,
    folder: Path,
    say: Callable[[str], None],
) -> Contest:
    """Lanes of a loaded model; eager in fp32 comes first, always: a ratio needs its baseline.

    Raises MissingError where the baseline itself cannot run.
    origin: the model for another process, {"source": file} or {"preset": name, ...}. folder: where
    exports go, one per precision.
    """
    contest = Contest([], [], [], [], model.config.image_size, model.config)
    pairs = [("eager", "fp32"), *((e, p) for p in precisions for e in engines)]
    for engine, precision in dict.fromkeys(pairs):
        is_torch = engine in ("eager", "compile")
        where = folder / precision

        def open_one(
            engine: str = engine, precision: str = precision, where: Path = where
        ) -> Session:
            if engine in ABSENT:
                raise MissingError(ABSENT[engine])
            if engine in ("eager", "compile"):
                return open_session(model, engine, device=device, precision=precision)
            if engine == "ort" and precision == "bf16" and device == "cpu":
                raise MissingError("ONNX Runtime has no bf16 on a CPU; use --engine openvino")
            if not where.exists():
                from stan_infer.export import export_model

                export_model(model, where, precision=precision, tower="video", progress=say)
            return open_session(where, engine, device=device, threads=threads)

        made = dict(origin) if is_torch else {"source": str(where)}
        _add(contest, open_one, engine, precision, device, made)
        if not contest.lanes:  # the baseline itself
            raise MissingError(contest.absent[0]["refused"])
    return contest


def open_folder(
    source: str,
    *,
    engines: Sequence[str],
    precisions: Sequence[str],
    device: str,
    threads: int,
    settings: Mapping[str, Any] | None,
) -> Contest:
    """Lanes of an exported folder; the first is the baseline, as a folder has no eager mode."""
    contest = Contest([], [], [], [], 0, None)
    wanted: list[str | None] = [*precisions] or [None]
    for engine, precision in ((e, p) for p in wanted for e in engines):

        def open_one(engine: str = engine, precision: str | None = precision) -> Session:
            if engine in ABSENT:
                raise MissingError(ABSENT[engine])
            return open_session(
                source,
                engine,
                device=device,
                precision=precision,
                settings=settings,
                threads=threads,
            )

        _add(contest, open_one, engine, precision, device, {"source": source})
    if not contest.lanes:
        raise MissingError(contest.absent[0]["refused"])
    config = next(s.config for s in contest.sessions if s is not None)
    return dataclasses.replace(contest, side=config.image_size, config=config)


def open_onnx(path: Path, *, engines: Sequence[str], device: str, threads: int) -> Contest:
    """Lanes of a bare video graph: uint8 [B, T, S, S, 3] in, its first output compared.

    Only its signature is known, so there are no GFLOP/s. Raises InputError for another input.
    """
    from stan_infer.onnx_file import check_external

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    check_external(path, {f"{path.name}.data"})
    contest = Contest([], [], [], [], 0, None)
    for engine in engines:
        try:
            if engine in ABSENT:
                raise MissingError(ABSENT[engine])
            if engine not in ("ort", "openvino"):
                raise MissingError(f"engine {engine} takes a checkpoint, not {path.name}")
            embed, contest.side, facts = _bare(path, engine, device, threads)
        except MissingError as e:
            contest.absent.append({"engine": engine, "precision": None, "refused": str(e)})
            continue
        contest.lanes.append(Lane(engine, embed, {"engine": engine, "device": device, **facts}))
        contest.sessions.append(None)
        contest.origins.append({"source": str(path), "engine": engine})
    if not contest.lanes:
        raise MissingError(contest.absent[0]["refused"])
    return contest


def _add(
    contest: Contest,
    open_one: Callable[[], Session],
    engine: str,
    precision: str | None,
    device: str,
    origin: dict[str, Any],
) -> None:
    try:
        session = open_one()
    except MissingError as e:
        contest.absent.append({"engine": engine, "precision": precision, "refused": str(e)})
        return
    facts = session.describe()
    clock: Clock = WallClock()
    if facts["device"].startswith("cuda") and engine in ("eager", "compile"):
        cuda = require("torch", "timing a GPU", "stan-infer[gpu]").cuda
        clock = CudaClock(cuda)
        facts["gpu"] = cuda.get_device_name(facts["device"])
    name = f"{engine} {facts['precision']}"
    contest.lanes.append(Lane(name, session.embed_video, facts, clock))
    contest.sessions.append(session)
    contest.origins.append({**origin, "engine": engine, "precision": precision, "device": device})


def _bare(
    path: Path, engine: str, device: str, threads: int
) -> tuple[Callable[[np.ndarray], np.ndarray], int, dict[str, Any]]:
    if engine == "ort":
        from stan_infer.engines.ort_session import OrtGraph
        from stan_infer.engines.ort_session import open_graph as open_ort

        graph: Any = OrtGraph(open_ort(path, device=device, threads=threads))
    else:
        from stan_infer.engines.ov_session import OvGraph
        from stan_infer.engines.ov_session import open_graph as open_ov

        graph = OvGraph(open_ov(path, device=device, threads=threads))
    signature = graph.signature()
    (name, (dtype, sizes)), *more = signature.inputs.items()
    side = sizes[2] if len(sizes) == 5 and sizes[4] == 3 and sizes[2] == sizes[3] else None
    if more or dtype != "uint8" or side is None:
        raise InputError(
            f"{path.name} takes {signature.inputs}; bench of a bare graph needs one input, uint8 "
            "[B, T, S, S, 3]: give the exported folder"
        )
    output = next(iter(signature.outputs))
    facts = {**graph.describe(), "precision": "unknown", "output": output}
    return (lambda clips: graph.run(output, {name: clips})), side, facts
