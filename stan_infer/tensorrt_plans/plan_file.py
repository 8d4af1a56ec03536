"""A TensorRT plan and the X.plan.json beside it: written, read and checked without TensorRT.

A plan is machine code for a GPU, bound to the version that built it. It comes from strangers: only
one whose size and hash its sidecar confirms is given to TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import ENGINES_FOLDER, MANIFEST, Artefact, Graph, sha256
from stan_infer.errors import InputError
from stan_infer.system.atomic import new_file
from stan_infer.system.json_file import checked, read_object

if TYPE_CHECKING:
    from stan_infer.tensorrt_plans.sidecar import Sidecar

SCHEMA = "1.0"
FLAVORS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}  # engine -> flavor, as sidecars have it
FORMATS = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}  # engine -> what export calls it
_MAX_SIDECAR = 2**20
_AGAIN = "; build the plan again"
# The header of TensorRT-RTX is undocumented; seen with 1.7.1.116, for messages only.
_RTX_MAGIC, _RTX_HEADER = b"vtrt", 64
_RTX_TARGETS = {1: "sm_75", 2: "sm_80", 4: "sm_86", 8: "sm_89", 16: "sm_120", 32: "sm_121"}

Sizes = tuple[int, ...]
Profile = dict[str, tuple[Sizes, Sizes, Sizes]]  # input -> smallest, optimal, largest shape


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan whose sidecar was read, and whose size and hash are those of the sidecar."""

    path: Path
    engine: str  # trt or trt-rtx
    version: tuple[int, ...]  # of the TensorRT that built it
    role: str  # video, text, preprocess or score
    precision: str
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]  # of trt-rtx: "sm_89", ...
    built_on: str | None  # "sm_89", of trt
    hardware: str  # NONE, or AMPERE_PLUS: newer GPUs, too
    flags: tuple[str, ...]
    options: dict[str, Any]  # of the builder
    sidecar: Sidecar  # as it stands in the file

    @property
    def flavor(self) -> str:
        """The package: tensorrt or tensorrt_rtx."""
        return FLAVORS[self.engine]

    def profile_of(self, shapes: Mapping[str, Sizes]) -> int:
        """Number of the profile for these input shapes; the narrowest, if several take them.

        Raises InputError with the ranges of all profiles where none does.
        """
        fitting = [i for i, p in enumerate(self.profiles) if _fits(p, shapes)]
        if not fitting:
            asked = ", ".join(f"{name} {size_text(s)}" for name, s in shapes.items())
            ranges = "; ".join(_words(p) for p in self.profiles)
            raise InputError(
                f"{self.path.name} has no profile for {asked}; it takes {ranges}: build it with a "
                f"profile for that shape, {self.rebuild('--batch MIN:OPT:MAX --frames ...')}"
            )
        return min(fitting, key=self.span)

    def span(self, i: int) -> float:
        """How many shapes a profile takes; the one with fewest is tuned best for any of them."""
        count = 1.0
        for low, _, high in self.profiles[i].values():
            for a, b in zip(low, high, strict=True):
                count *= b - a + 1
        return count

    def widest(self) -> int:
        """Number of the profile that takes most shapes."""
        return max(range(len(self.profiles)), key=self.span)

    def load(self) -> bytes:
        """The plan's bytes, whose hash is the sidecar's; InputError where it is not.

        What is given to TensorRT must be what was hashed, and not what lies there by then.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sidecar["plan_sha256"]:
            raise InputError(_changed(self))
        return data

    def rebuild(self, options: str = "") -> str:
        """The command that builds this plan again, from the ONNX file in its folder."""
        folder = os.path.relpath(self.path.absolute().parent.parent)
        words = ["stan-infer export", folder, "--format", FORMATS[self.engine], options]
        words[1] = shlex.quote(folder)
        return " ".join(w for w in words if w)


def sidecar_path(plan: Path) -> Path:
    """Where the sidecar of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


@contextmanager
def new_plan(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a temporary path for a plan, and what its sidecar is to say; both appear, or none.

    They are renamed one behind the other; a reader in between sees a hash that does not fit, and
    refuses. So does it after two builds of one plan at once that end in turns.
    """
    values: dict[str, Any] = {}
    with new_file(sidecar_path(path)) as beside, new_file(path) as plan:
        yield plan, values
        size, digest = plan.stat().st_size, sha256(plan)
        full = {"schema": SCHEMA, **values, "plan_bytes": size, "plan_sha256": digest}
        text = json.dumps(full, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


def read_plan(path: str | Path, *, check_hash: bool = True) -> Plan:
    """Read and check a plan and its sidecar; nothing of the plan is executed.

    Raises InputError for a file or sidecar that is missing, malformed, of another schema, or not
    about this plan: another size (an incomplete copy) or hash, or a header of something else.
    """
    path = Path(path)
    if not os.path.isfile(path):
        what = "it is a folder" if os.path.isdir(path) else "no such file"
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
            f"plan {path} is no plan of TensorRT-RTX although its sidecar says so: {plan.rebuild()}"
        )
    return plan


def read_header(path: Path) -> dict[str, Any] | None:
    """What a TensorRT-RTX plan says of itself: bytes, version, targets; None for other files."""
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
    """Refuse a plan of another version than the one installed, or one with host code inside.

    Major, minor and patch must be equal. Raises InputError with both versions and the command.
    """
    if "VERSION_COMPATIBLE" in plan.flags:
        raise InputError(
            f"plan {plan.path} was built with --version-compatible: NVIDIA's lean runtime is in "
            "it, which is host code, and that is not loaded here. It is for programs that allow "
            "it, as tritonserver --backend-config=tensorrt,version-compatible=true; for this one: "
            f"{plan.rebuild()}"
        )
    if tuple(installed[:3]) == plan.version[:3]:
        return
    raise InputError(
        f"plan {plan.path} was built by {plan.flavor} {_dotted(plan.version)}; installed is "
        f"{_dotted(installed)}: build it again, {plan.rebuild()} (or give --auto-rebuild)"
    )


def check_device(plan: Plan, sm: str, name: str) -> None:
    """Refuse a plan for another GPU than `sm` ("sm_89"). Raises InputError with the command."""
    is_wide = plan.hardware == "AMPERE_PLUS"
    if plan.targets:
        fits = sm in plan.targets
    elif is_wide:
        fits = _number(sm) >= 80
    else:
        fits = sm == plan.built_on
    if not fits:
        known = ", ".join(plan.targets) or f"{plan.built_on}{' and newer' if is_wide else ''}"
        raise InputError(
            f"plan {plan.path} was built for {known}; this GPU is {name}, {sm}: build it again "
            f"here, {plan.rebuild()} (or give --auto-rebuild)"
        )


def check_origin(artefact: Artefact, graph: Graph, plan: Plan) -> None:
    """Refuse a plan that was built from another folder or an earlier export. Raises InputError."""
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
    """Plans of an engine by role, their hashes not yet compared; a given one stands alone.

    Raises InputError for a broken one where there is no other of its role.
    """
    found: dict[str, list[Plan]] = {}
    broken: dict[str, InputError] = {}
    for path in sorted((artefact.path / ENGINES_FOLDER).glob("*.plan")):
        try:
            plan = read_plan(path, check_hash=False)
        except InputError as e:
            # Its sidecar may not say what it is; its name does, as an export gives it.
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
    """Refuse plans of the towers that were changed, where there is no sound one of their role.

    Needs neither TensorRT nor a GPU, so what was changed can be told before what is missing.
    Raises InputError.
    """
    found = plans_of(artefact, engine, given)
    for graph in artefact.graphs:
        errors = []
        for plan in found.get(graph.role, []) if graph.role in ("video", "text") else []:
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
            f"{path} looks like {what}, but {beside.name} is not beside it: a plan is code, and "
            "only one whose hash its sidecar confirms is loaded; copy the sidecar too, or build "
            "the plan again: stan-infer export FOLDER --format tensorrt (or tensorrt-rtx)"
        )
    values = read_object(beside, _MAX_SIDECAR, _AGAIN)
    schema = values.get("schema")
    if not isinstance(schema, str) or schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise InputError(
            f"{beside} has schema {str(schema)[:20]!r}; this version reads {SCHEMA}: build the "
            "plan again"
        )
    return checked(values, Sidecar, str(beside), _AGAIN)


def _plan(path: Path, values: Sidecar) -> Plan:
    profiles = []
    for profile in values["profiles"]:
        shapes: Profile = {}
        for name, (low, best, high) in profile.items():
            ordered = all(a <= b <= c for a, b, c in zip(low, best, high, strict=False))
            if not len(low) == len(best) == len(high) or not ordered:
                raise InputError(
                    f"{sidecar_path(path)} is malformed: {name[:40]!r} of a profile is not three "
                    f"shapes of one rank, from smallest to largest{_AGAIN}"
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
    for name, shape in shapes.items():
        low, _, high = profile.get(name, ((), (), ()))
        if len(low) != len(shape):
            return False
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return False
    return True


def _words(profile: Profile) -> str:
    return ", ".join(
        f"{name} {size_text(p[0])} to {size_text(p[2])}" for name, p in profile.items()
    )


def size_text(shape: Sequence[int | str]) -> str:
    """A shape as users write it: 1x12x224x224x3."""
    return "x".join(map(str, shape))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _number(sm: str) -> int:
    digits = sm.removeprefix("sm_")
    return int(digits) if digits.isdigit() else 0
