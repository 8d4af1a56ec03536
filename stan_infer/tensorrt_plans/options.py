"""What can be asked of a plan: its profiles and the builder's options, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.config import StanConfig
from stan_infer.errors import InputError, MissingError, check_word

ROLES = ("video", "text", "preprocess", "score")
MAX_BATCH = 8  # of the default profile: activations of 32 clips of 64 frames take many GB
TEXTS = 256  # as many as a session gives at once

Range = tuple[int, int, int]  # smallest, optimal, largest
Dims = dict[str, Range]  # by the dimension's name in the manifest

_SMALLEST = {"fp8": 89, "bf16": 80}  # compute capability that has the number format
_DEFAULT_SMALLEST = 80  # what RTX compiles for where nobody says: not Turing


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the plans of one folder.

    batch, frames: ranges of the video graph's profiles, pairwise, or one of them for all of the
    other's; empty is the default two: one clip of the configured frames, and anything else. roles:
    of the graphs. tf32: let fp32 products run in TF32. workspace_mib, level: of the builder.
    timing_cache: file, of trt only. hardware_compatible: for GPUs from Ampere on; trt only.
    version_compatible: for later versions, with host code inside; trt only, and not for our own
    engines. targets: "sm_89", ...; trt-rtx only.
    """

    batch: Sequence[Range] = ()
    frames: Sequence[Range] = ()
    roles: Sequence[str] = ("video", "text")
    tf32: bool = False
    workspace_mib: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: Sequence[str] = ()

    def check(self, engine: str) -> None:
        """Raise InputError for a word or a pair that no plan can have."""
        for role in self.roles:
            check_word("--plans", role, ROLES)
        if not self.roles:
            raise InputError(f"--plans names no graph ({', '.join(ROLES)})")
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"--level {self.level} is out of range; allowed are 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"--workspace {self.workspace_mib} MiB is out of range; give 1 up")
        cache = self.timing_cache
        if cache is not None and (cache.is_dir() or not cache.absolute().parent.is_dir()):
            raise InputError(f"--timing-cache {cache}: no such folder, or a folder; give a file")
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


def parse_ranges(text: str, name: str) -> list[Range]:
    """ "1,1:8:32" -> [(1, 1, 1), (1, 8, 32)]: a size, or min:opt:max, for each profile."""
    found = []
    for part in text.split(","):
        try:
            numbers = [int(n) for n in part.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3):
            raise InputError(
                f"{name} {part!r} is neither a size nor MIN:OPT:MAX, as in {name} 1:8:32; commas "
                "part profiles"
            )
        low, best, high = numbers * 3 if len(numbers) == 1 else numbers
        if not 1 <= low <= best <= high:
            raise InputError(f"{name} {part}: it must hold that 1 <= MIN <= OPT <= MAX")
        found.append((low, best, high))
    return found


def profiles_of(artefact: Artefact, graph: Graph, options: PlanOptions) -> list[dict[str, Any]]:
    """Profiles of one graph: input -> smallest, optimal, largest shape.

    Raises InputError for sizes that the graph does not take: a builder takes them in silence, and
    the plan fails when it runs.
    """
    given = graph.role == "video" and (options.batch or options.frames)
    wanted = _asked(artefact.config, graph, options) if given else _default(artefact.config, graph)
    found: list[dict[str, Any]] = []
    for dims in wanted:
        _check(graph, dims)
        shapes = {str(i["name"]): _shapes(i["shape"], dims) for i in graph.inputs}
        if shapes not in found:
            found.append(shapes)
    return found


def profile_fits(graph: Graph, profile: Mapping[str, Sequence[Sequence[int]]]) -> bool:
    """Whether the shapes of a profile are those of the graph's inputs, within what it takes."""
    inputs = {str(i["name"]): i["shape"] for i in graph.inputs}
    if profile.keys() != inputs.keys():
        return False
    for name, dims in inputs.items():
        limits = [(n, n) if isinstance(n, int) else graph.dims[n] for n in dims]
        for shape in profile[name]:
            if len(shape) != len(limits):
                return False
            if not all(low <= n <= high for n, (low, high) in zip(shape, limits, strict=True)):
                return False
    return True


def targets_of(module: Any, precision: str, asked: Sequence[str]) -> list[str]:
    """Compute capabilities that a plan of trt-rtx is compiled for, as "sm_89".

    Without any asked for: all that the version names and the precision runs on, from Ampere on.
    Raises MissingError for one that the version does not compile for, or without the precision.
    """
    names = [n for n in dir(module.ComputeCapability) if n.startswith("SM") and n[2:].isdigit()]
    known = sorted((f"sm_{n[2:]}" for n in names), key=_number)
    least = _SMALLEST.get(precision, 0)
    if not asked:
        return [sm for sm in known if _number(sm) >= max(least, _DEFAULT_SMALLEST)]
    for sm in asked:
        if sm not in known:
            raise MissingError(
                f"tensorrt_rtx {module.__version__} does not compile for {sm}; it does for "
                f"{', '.join(known)}: give one of these, or --format tensorrt on a machine with "
                "that GPU"
            )
        if _number(sm) < least:
            raise MissingError(
                f"{sm} has no {precision}; sm_{least} and newer have: leave it out, or export "
                "with --precision fp16"
            )
    return list(dict.fromkeys(asked))


def _asked(config: StanConfig, graph: Graph, options: PlanOptions) -> list[Dims]:
    batch, frames = list(options.batch), list(options.frames)
    if not batch:
        batch = [_default(config, graph)[-1]["batch"]]
    if not frames:
        frames = [_default(config, graph)[-1]["frames"]]
    count = max(len(batch), len(frames))
    if {len(batch), len(frames)} - {1, count}:
        raise InputError(
            f"--batch has {len(batch)} profiles and --frames {len(frames)}: give as many of both, "
            "or one of either for all"
        )
    batch, frames = (r * count if len(r) == 1 else r for r in (batch, frames))
    return [{"batch": b, "frames": t} for b, t in zip(batch, frames, strict=True)]


def _default(config: StanConfig, graph: Graph) -> list[Dims]:
    t, length = config.frames, config.context_length

    def within(name: str, low: int, best: int, high: int) -> Range:
        least, most = graph.dims[name]
        low, high = max(low, least), min(high, most)
        return low, min(max(best, low), high), high

    if graph.role == "video":
        most = graph.dims["frames"][1]
        one = {"batch": within("batch", 1, 1, 1), "frames": within("frames", t, t, t)}
        wide = {"batch": within("batch", 1, 1, MAX_BATCH), "frames": within("frames", 1, t, most)}
        return [one, wide] if one["batch"][0] == 1 else [wide]
    ids = (2, length, config.context_positions)
    if graph.role == "text":
        return [{"batch": within("batch", 1, 8, TEXTS), "length": within("length", *ids)}]
    if graph.role == "score":
        return [
            {
                "texts": within("texts", 1, 8, TEXTS),
                "length": within("length", *ids),
                "videos": within("videos", 1, MAX_BATCH, 64),
                "frames": within("frames", 1, t, config.max_frames),
            }
        ]
    return [
        {
            "n": within("n", 1, t, max(t, 16)),
            "height": within("height", 16, 720, 2160),
            "width": within("width", 16, 1280, 3840),
        }
    ]


def _check(graph: Graph, dims: Mapping[str, Range]) -> None:
    for name, (low, _, high) in dims.items():
        least, most = graph.dims[name]
        if low < least or high > most:
            taken = f"{least}" if least == most else f"{least} to {most}"
            hint = ", the rows of the time table" if name == "frames" and least == 1 else ""
            raise InputError(
                f"profile with {name} {low} to {high} is beyond {graph.file}, which takes "
                f"{taken}{hint}: give a range inside, or export the checkpoint with another one"
            )


def _shapes(shape: Sequence[int | str], dims: Mapping[str, Range]) -> list[list[int]]:
    return [[n if isinstance(n, int) else dims[n][i] for n in shape] for i in range(3)]


def _number(sm: str) -> int:
    digits = sm.removeprefix("sm_")
    return int(digits) if digits.isdigit() else 0
