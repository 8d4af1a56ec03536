"""A TensorRT plan and its sidecar, X.plan.json: written, read and checked without TensorRT.

A plan is machine code for a GPU, for one version of TensorRT. It may come from a stranger: it is
given to TensorRT only if its size and hash are those in its sidecar.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import (
    ENGINES_FOLDER,
    MANIFEST,
    Artefact,
    Graph,
    check_schema,
    sha256,
    write_json,
)
from stan_infer.artefacts.parts import PARTS
from stan_infer.errors import InputError, see
from stan_infer.system.atomic import new_file
from stan_infer.system.json_file import checked, read_object
from stan_infer.system.outside_file import odd_name

if TYPE_CHECKING:
    from stan_infer.tensorrt_plans.sidecar import Sidecar

SCHEMA = "1.0"
FLAVORS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}  # engine -> its package; in sidecars
FORMATS = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}  # engine -> the --format of export
_MAX_SIDECAR = 2**20
_AGAIN = "; build the plan again"
# The header of a TensorRT-RTX plan is undocumented; this is what 1.7.1.116 writes.
_RTX_MAGIC, _RTX_HEADER = b"vtrt", 64
_RTX_TARGETS = {1: "sm_75", 2: "sm_80", 4: "sm_86", 8: "sm_89", 16: "sm_120", 32: "sm_121"}

Sizes = tuple[int, ...]
Profile = dict[str, tuple[Sizes, Sizes, Sizes]]  # input -> smallest, optimal, largest shape


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan that `read_plan` checked against its sidecar."""

    path: Path
    engine: str  # trt or trt-rtx
    version: tuple[int, ...]  # of the TensorRT that built it
    role: str  # of its graph: video, text, trunk, branch, preprocess or score
    precision: str
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]  # of trt-rtx: "sm_89", ...
    built_on: str | None  # "sm_89", of trt
    hardware: str  # NONE, or AMPERE_PLUS: runs on newer GPUs too
    flags: tuple[str, ...]
    options: dict[str, Any]  # of the builder
    sidecar: Sidecar

    @property
    def flavor(self) -> str:
        """The package: tensorrt or tensorrt_rtx."""
        return FLAVORS[self.engine]

    def profile_of(self, shapes: Mapping[str, Sizes]) -> int:
        """Number of the profile for these input shapes; the narrowest, if several take them.

        Raises InputError, with the ranges of all profiles, if none takes them.
        """
        fitting = [i for i, p in enumerate(self.profiles) if _fits(p, shapes)]
        if not fitting:
            asked = ", ".join(f"{name} {size_text(s)}" for name, s in shapes.items())
            ranges = "; ".join(_range_text(p) for p in self.profiles)
            raise InputError(
                f"{self.path.name} has no profile for {asked}; it takes {ranges}: build it with a "
                f"profile for that shape, {self.rebuild('--batch MIN:OPT:MAX --frames ...')}"
            )
        return min(fitting, key=self.span)

    def span(self, i: int) -> float:
        """How many shapes profile number `i` takes. The fewer, the better it is tuned for each."""
        return math.prod(
            float(b - a + 1)
            for low, _, high in self.profiles[i].values()
            for a, b in zip(low, high, strict=True)
        )

    def widest(self) -> int:
        """Number of the profile that takes most shapes."""
        return max(range(len(self.profiles)), key=self.span)

    def load(self) -> bytes:
        """Return the plan's bytes; InputError if their hash is not the sidecar's.

        The file is read once, so that TensorRT gets the same bytes that were hashed.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sidecar["plan_sha256"]:
            raise InputError(_changed(self))
        return data

    def rebuild(self, options: str = "") -> str:
        """The command that builds this plan again, from the ONNX file in its folder."""
        folder = shlex.quote(os.path.relpath(self.path.absolute().parent.parent))
        return f"stan-infer export {folder} --format {FORMATS[self.engine]} {options}".rstrip()


def sidecar_path(plan: Path) -> Path:
    """The path of a plan's sidecar."""
    return plan.with_name(f"{plan.name}.json")


@contextmanager
def new_plan(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a temporary path for a plan, and a dict for the content of its sidecar.

    At the end both files take their places, or neither does. They are renamed one after the other:
    whoever reads between the two renames sees a hash that does not match, and refuses the plan. The
    same holds if two builds of one plan end at the same time and their renames mix.
    """
    values: dict[str, Any] = {}
    folder = path.absolute().parent.parent
    with (
        new_file(sidecar_path(path), part_of=folder) as beside,
        new_file(path, part_of=folder) as plan,
    ):
        yield plan, values
        size, digest = plan.stat().st_size, sha256(plan)
        full = {"schema": SCHEMA, **values, "plan_bytes": size, "plan_sha256": digest}
        write_json(beside, full)


def read_plan(path: str | Path, *, check_hash: bool = True) -> Plan:
    """Read and check a plan and its sidecar, without executing the plan.

    Raises InputError for a file or sidecar that is missing, malformed or of another schema, and for
    a plan whose size, hash or header does not match its sidecar.
    """
    path = Path(path)
    if not os.path.isfile(path):
        what = "it is a folder" if os.path.isdir(path) else odd_name(path) or "no such file"
        raise InputError(f"plan {path}: {what}; stan-infer export FOLDER --format tensorrt")
    values = _read_sidecar(path)
    plan = _plan(path, values)
    size, wanted = path.stat().st_size, values["plan_bytes"]
    if size != wanted:
        raise InputError(
            f"plan {path} has {size} bytes, its sidecar says {wanted}: an incomplete copy? Copy it "
            f"again, or build it: {plan.rebuild()}"
        )
    if check_hash and sha256(path) != values["plan_sha256"]:
        raise InputError(_changed(plan))
    header = read_header(path)
    if plan.engine == "trt-rtx" and (header is None or header["bytes"] != size):
        raise InputError(
            f"plan {path} is not a plan of TensorRT-RTX although its sidecar says so: "
            f"{plan.rebuild()}"
        )
    return plan


def read_header(path: Path) -> dict[str, Any] | None:
    """Size, version and targets in the header of a TensorRT-RTX plan; None for other files."""
    with path.open("rb") as f:
        head = f.read(_RTX_HEADER)
    if len(head) < _RTX_HEADER or head[:4] != _RTX_MAGIC or head[28:32] != _RTX_MAGIC:
        return None
    (total,) = struct.unpack_from("<Q", head, 16)
    (mask,) = struct.unpack_from("<I", head, 32)
    (weights,) = struct.unpack_from("<Q", head, 56)
    return {
        "bytes": total,
        "version": list(head[24:28]),
        "targets": [name for bit, name in _RTX_TARGETS.items() if mask & bit],
        "weight_bytes": weights,
    }


def check_version(plan: Plan, installed: Sequence[int]) -> None:
    """Refuse a plan of another version than the one installed, or one that contains host code.

    Major, minor and patch must be equal. Raises InputError with both versions and the command that
    builds the plan again.
    """
    if "VERSION_COMPATIBLE" in plan.flags:
        raise InputError(
            f"plan {plan.path} was built with --version-compatible: it contains NVIDIA's lean "
            "runtime, which is host code, and this program loads none. Use it in a program that "
            "does, as tritonserver --backend-config=tensorrt,version-compatible=true; for this "
            f"one: {plan.rebuild()}"
        )
    if tuple(installed[:3]) == plan.version[:3]:
        return
    raise InputError(
        f"plan {plan.path} was built by {plan.flavor} {_dotted(plan.version)}; installed is "
        f"{_dotted(installed)}: build it again, {plan.rebuild()} (or give --auto-rebuild)"
        f"{see('TENSORRT')}"
    )


def check_device(plan: Plan, sm: str, name: str) -> None:
    """Refuse a plan that was not built for a GPU of type `sm` ("sm_89"), called `name`.

    Raises InputError with the command that builds the plan for it.
    """
    is_wide = plan.hardware == "AMPERE_PLUS"
    if plan.targets:
        fits = sm in plan.targets
    elif is_wide:
        fits = sm_number(sm) >= 80
    else:
        fits = sm == plan.built_on
    if not fits:
        known = ", ".join(plan.targets) or f"{plan.built_on}{' and newer' if is_wide else ''}"
        raise InputError(
            f"plan {plan.path} was built for {known}; this GPU is {name}, {sm}: build it again "
            f"here, {plan.rebuild()} (or give --auto-rebuild){see('TENSORRT')}"
        )


def check_origin(artefact: Artefact, graph: Graph, plan: Plan) -> None:
    """Raise InputError for a plan that was built from another folder or an earlier export."""
    hashes: Sequence[tuple[str, str, str]] = (
        ("onnx_sha256", graph.file, artefact.manifest["files"][graph.file]["sha256"]),
        ("manifest_sha256", MANIFEST, sha256(artefact.path / MANIFEST)),
    )
    for key, name, digest in hashes:
        if plan.sidecar.get(key) != digest:
            raise InputError(
                f"plan {plan.path} was built from another {name} than the one in "
                f"{artefact.path}: build it again, {plan.rebuild()}"
            )


def plans_of(artefact: Artefact, engine: str, given: Plan | None = None) -> dict[str, list[Plan]]:
    """The plans of a folder for an engine, by role; their hashes are not compared.

    given: a plan to use instead of the folder's plans of its role. Raises InputError for a broken
    plan if there is no other one of its role.
    """
    found: dict[str, list[Plan]] = {}
    broken: dict[str, InputError] = {}
    for path in sorted((artefact.path / ENGINES_FOLDER).glob("*.plan")):
        try:
            plan = read_plan(path, check_hash=False)
        except InputError as e:
            # The sidecar may be unreadable, so the role is taken from the name that we give plans.
            named = re.fullmatch(rf"(\w+)\..+\.{engine}(-sm_\d+)?\.plan", path.name)
            broken.setdefault(named[1] if named else "", e)
            continue
        if plan.engine == engine:
            found.setdefault(plan.role, []).append(plan)
    if given is not None:
        found[given.role] = [given]
    for role, error in broken.items():
        if not found or (role and role not in found):
            raise error
    return found


def check_plans(artefact: Artefact, engine: str, given: Plan | None = None) -> None:
    """Raise InputError for a tower, or a part, whose plans were all changed or of another export.

    This needs neither TensorRT nor a GPU, so that a changed plan is reported before anything that
    is missing on this machine.
    """
    found = plans_of(artefact, engine, given)
    for graph in artefact.graphs:
        if graph.role not in ("video", "text", *PARTS):
            continue
        errors = []
        for plan in found.get(graph.role, []):
            try:
                check_origin(artefact, graph, plan)
                read_plan(plan.path)
                break
            except InputError as e:
                errors.append(e)
        else:
            if errors:
                raise errors[0]


def _changed(plan: Plan) -> str:
    return (
        f"the hash of plan {plan.path} is not the one in its sidecar: it was changed after it was "
        f"built, and a plan is code, so it is not loaded: {plan.rebuild()}"
    )


def _read_sidecar(path: Path) -> Sidecar:
    from stan_infer.tensorrt_plans.sidecar import Sidecar

    beside = sidecar_path(path)
    if not os.path.isfile(beside):
        if not path.stat().st_size:
            raise InputError(f"plan {path} is empty (0 bytes); copy it again")
        header = read_header(path)
        what = f"a plan of TensorRT-RTX {_dotted(header['version'])}" if header else "a plan"
        raise InputError(
            f"{path} looks like {what}, but {beside.name} is not beside it: a plan is code, and is "
            "loaded only if its sidecar has its hash; copy the sidecar too, or build the plan "
            "again: stan-infer export FOLDER --format tensorrt (or tensorrt-rtx)"
        )
    values = read_object(beside, _MAX_SIDECAR, _AGAIN)
    check_schema(values, SCHEMA, str(beside), _AGAIN)
    return checked(values, Sidecar, str(beside), _AGAIN)


def _plan(path: Path, values: Sidecar) -> Plan:
    profiles = []
    for profile in values["profiles"]:
        shapes: Profile = {}
        for name, (low, best, high) in profile.items():
            ordered = all(a <= b <= c for a, b, c in zip(low, best, high, strict=False))
            if not len(low) == len(best) == len(high) or not ordered:
                raise InputError(
                    f"{sidecar_path(path)} is malformed: the shapes of {name[:40]!r} in a profile "
                    f"are not three of one rank, from smallest to largest{_AGAIN}"
                )
            shapes[name] = tuple(low), tuple(best), tuple(high)
        profiles.append(shapes)
    built = values.get("built_on")
    return Plan(
        path=path,
        engine={v: k for k, v in FLAVORS.items()}[values["flavor"]],
        version=tuple(values["trt_version"]),
        role=values["role"],
        precision=values["precision"],
        profiles=tuple(profiles),
        targets=tuple(values.get("targets") or ()),
        built_on=built["sm"] if built else None,
        hardware=values.get("hardware_compatibility", "NONE"),
        flags=tuple(values.get("flags") or ()),
        options=dict(values.get("options") or {}),
        sidecar=values,
    )


def _fits(profile: Profile, shapes: Mapping[str, Sizes]) -> bool:
    return all(
        name in profile and within(shape, profile[name][0], profile[name][2])
        for name, shape in shapes.items()
    )


def within(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    """Whether a shape has the rank of two others, and each size is between theirs."""
    return len(shape) == len(low) and all(
        a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
    )


def _range_text(profile: Profile) -> str:
    return ", ".join(
        f"{name} {size_text(p[0])} to {size_text(p[2])}" for name, p in profile.items()
    )


def size_text(shape: Sequence[int | str]) -> str:
    """A shape as messages show it: 1x12x224x224x3."""
    return "x".join(map(str, shape))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def sm_number(sm: str) -> int:
    """ "sm_89" -> 89; 0 for other text."""
    digits = sm.removeprefix("sm_")
    return int(digits) if digits.isdigit() else 0
