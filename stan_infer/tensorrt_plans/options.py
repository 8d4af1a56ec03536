"""Options of plans, checked before any work, and the profiles and targets that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.parts import CHUNK, PARTS
from stan_infer.config import StanConfig
from stan_infer.errors import InputError, MissingError, check_word
from stan_infer.tensorrt_plans.plan_file import sm_number, within

TOWERS = ("video", "text", *PARTS)  # the graphs that engines run, so far as a folder has them
ROLES = (*TOWERS, "preprocess", "score")
DEFAULT_CLIPS = 8  # largest batch by default: activations of 32 clips of 64 frames take many GB
DEFAULT_FRAMES = 64  # largest number of frames by default that pass the trunk alone at once
DEFAULT_TEXTS = 256  # largest batch by default; a session encodes as many texts in one run

MinOptMax = tuple[int, int, int]  # smallest, optimal, largest
Dims = dict[str, MinOptMax]  # by the dimension's name in the manifest

_SMALLEST = {"fp8": 89, "bf16": 80}  # number format -> first compute capability that has it
_DEFAULT_SMALLEST = 80  # first compute capability that RTX compiles for by default: not Turing


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the plans of one folder.

    batch, frames: ranges of the profiles of video and branch. They are paired one by one; if one of
    the two has a single range, that is used in all profiles. Both empty: two profiles, one clip of
    the configured frames, and up to DEFAULT_CLIPS clips of any length. A trunk always has one frame
    and up to DEFAULT_FRAMES. roles: the graphs to build plans of. tf32: let fp32 matrix products
    run in TF32. workspace_mib, level: of the builder, which chooses where they are None.
    timing_cache: a file; trt only. hardware_compatible: the plan runs on all GPUs from Ampere on;
    trt only. version_compatible: later versions run the plan, which then contains host code; trt
    only, and our own engines do not load it. targets: "sm_89", ...; trt-rtx only.
    """

    batch: Sequence[MinOptMax] = ()
    frames: Sequence[MinOptMax] = ()
    roles: Sequence[str] = TOWERS
    tf32: bool = False
    workspace_mib: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: Sequence[str] = ()

    def check(self, engine: str) -> None:
        """Raise InputError for options that are wrong, or that the engine does not have."""
        for role in self.roles:
            check_word("--plans", role, ROLES)
        if not self.roles:
            raise InputError(f"--plans names no graph; give one or more of {', '.join(ROLES)}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"--builder-level {self.level} is out of range; allowed are 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(
                f"--workspace {self.workspace_mib} MiB is out of range; give 1 or more"
            )
        cache = self.timing_cache
        if cache is not None and (cache.is_dir() or not cache.absolute().parent.is_dir()):
            raise InputError(
                f"--timing-cache {cache} is a folder, or in a folder that does not exist; give a "
                "file"
            )
        only: dict[str, dict[str, object]] = {
            "trt": {"--target": self.targets},
            "trt-rtx": {
                "--timing-cache": self.timing_cache,
                "--hardware-compatible": self.hardware_compatible,
                "--version-compatible": self.version_compatible,
            },
        }
        for option, value in only[engine].items():
            if value:
                other = "tensorrt-rtx" if engine == "trt" else "tensorrt"
                raise InputError(f"{option} belongs to --format {other}")


def parse_ranges(text: str, name: str) -> list[MinOptMax]:
    """ "1,1:8:32" -> [(1, 1, 1), (1, 8, 32)]: a size or MIN:OPT:MAX for each profile.

    name: of the option, for InputError.
    """
    found = []
    for part in text.split(","):
        try:
            numbers = [int(n) for n in part.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3):
            raise InputError(
                f"{name} {part!r} is neither a size nor MIN:OPT:MAX, as in {name} 1:8:32; separate "
                "profiles by commas"
            )
        low, best, high = numbers * 3 if len(numbers) == 1 else numbers
        if not 1 <= low <= best <= high:
            raise InputError(f"{name} {part} is out of order: 1 <= MIN <= OPT <= MAX is needed")
        found.append((low, best, high))
    return found


def profiles_of(artefact: Artefact, graph: Graph, options: PlanOptions) -> list[dict[str, Any]]:
    """Profiles of one graph: input -> smallest, optimal, largest shape.

    Raises InputError for sizes that the graph does not take. TensorRT's builder accepts such sizes
    without a message, and the plan then fails when it runs.
    """
    given = graph.role in ("video", "branch") and (options.batch or options.frames)
    wanted = _asked(artefact.config, graph, options) if given else _default(artefact.config, graph)
    found: list[dict[str, Any]] = []
    for dims in wanted:
        _check(graph, dims)
        shapes = {
            str(port["name"]): [
                [n if isinstance(n, int) else dims[n][i] for n in port["shape"]] for i in range(3)
            ]
            for port in graph.inputs
        }
        if shapes not in found:
            found.append(shapes)
    return found


def profile_fits(graph: Graph, profile: Mapping[str, Sequence[Sequence[int]]]) -> bool:
    """Whether a profile is for the inputs of a graph, and its shapes within the graph's ranges."""
    limits = {
        str(port["name"]): [(n, n) if isinstance(n, int) else graph.dims[n] for n in port["shape"]]
        for port in graph.inputs
    }
    return profile.keys() == limits.keys() and all(
        within(shape, [low for low, _ in limits[name]], [high for _, high in limits[name]])
        for name, shapes in profile.items()
        for shape in shapes
    )


def targets_of(module: Any, precision: str, asked: Sequence[str]) -> list[str]:
    """Compute capabilities that a plan of trt-rtx is compiled for, as "sm_89".

    module: tensorrt_rtx. asked: those that the user named; empty: from Ampere on, all that the
    module compiles for and that have the precision. Raises MissingError for one that the module
    does not compile for, or that lacks the precision.
    """
    names = [n for n in dir(module.ComputeCapability) if n.startswith("SM") and n[2:].isdigit()]
    known = sorted((f"sm_{n[2:]}" for n in names), key=sm_number)
    least = _SMALLEST.get(precision, 0)
    if not asked:
        return [sm for sm in known if sm_number(sm) >= max(least, _DEFAULT_SMALLEST)]
    for sm in asked:
        if sm not in known:
            raise MissingError(
                f"tensorrt_rtx {module.__version__} does not compile for {sm}; it does for "
                f"{', '.join(known)}: give one of these, or --format tensorrt on a machine with "
                "that GPU"
            )
        if sm_number(sm) < least:
            raise MissingError(
                f"{sm} has no {precision}; sm_{least} and newer have it: leave {sm} out, or export "
                "with --precision fp16"
            )
    return list(dict.fromkeys(asked))


def _asked(config: StanConfig, graph: Graph, options: PlanOptions) -> list[Dims]:
    widest = _default(config, graph)[-1]
    batch = list(options.batch) or [widest["batch"]]
    frames = list(options.frames) or [widest["frames"]]
    count = max(len(batch), len(frames))
    if {len(batch), len(frames)} - {1, count}:
        raise InputError(
            f"--batch has {len(batch)} ranges and --frames {len(frames)}: give as many of both, or "
            "a single one of either, which is used in all profiles"
        )
    batch, frames = (r * count if len(r) == 1 else r for r in (batch, frames))
    return [{"batch": b, "frames": t} for b, t in zip(batch, frames, strict=True)]


def _default(config: StanConfig, graph: Graph) -> list[Dims]:
    t, length = config.frames, config.context_length

    def profile(**wanted: MinOptMax) -> Dims:
        """The wanted ranges, cut to those that the graph takes."""
        found = {}
        for name, (low, best, high) in wanted.items():
            least, most = graph.dims[name]
            low, high = max(low, least), min(high, most)
            found[name] = low, min(max(best, low), high), high
        return found

    if graph.role in ("video", "branch"):
        one = profile(batch=(1, 1, 1), frames=(t, t, t))
        wide = profile(batch=(1, 1, DEFAULT_CLIPS), frames=(1, t, graph.dims["frames"][1]))
        return [one, wide] if one["batch"][0] == 1 else [wide]
    if graph.role == "trunk":
        return [profile(frames=(1, 1, 1)), profile(frames=(1, CHUNK, DEFAULT_FRAMES))]
    texts, ids = (1, 8, DEFAULT_TEXTS), (2, length, config.context_positions)
    if graph.role == "text":
        return [profile(batch=texts, length=ids)]
    if graph.role == "score":
        videos = (1, DEFAULT_CLIPS, 64)
        frames = (1, t, config.max_frames)
        return [profile(texts=texts, length=ids, videos=videos, frames=frames)]
    return [profile(n=(1, t, max(t, 16)), height=(16, 720, 2160), width=(16, 1280, 3840))]


def _check(graph: Graph, dims: Dims) -> None:
    for name, (low, _, high) in dims.items():
        least, most = graph.dims[name]
        if low < least or high > most:
            taken = f"{least}" if least == most else f"{least} to {most}"
            hint = ", the rows of the time table" if name == "frames" and least == 1 else ""
            raise InputError(
                f"profile with {name} {low} to {high} is beyond {graph.file}, which takes "
                f"{taken}{hint}: give a range inside, or export the checkpoint with another one"
            )
