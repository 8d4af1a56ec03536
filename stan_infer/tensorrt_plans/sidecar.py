"""The types of X.plan.json, which describes the plan X.plan; plan_file checks a file against them.

They are a module of their own because msgspec, which they need, is slow to import.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from stan_infer.artefacts.manifest import Count, Digest, Number, Size, Text, Word

MAX_PLAN = 2**34  # bytes; the C++ client reads no larger one either

Flavor = Literal["tensorrt", "tensorrt_rtx"]
Sm = Annotated[str, Meta(pattern=r"\Asm_[0-9]{1,4}\Z")]
Shape = Annotated[list[Size], Meta(max_length=8)]
Shapes = Annotated[list[Shape], Meta(min_length=3, max_length=3)]  # smallest, optimal, largest
Version = Annotated[list[Annotated[int, Meta(ge=0, lt=2**31)]], Meta(min_length=3, max_length=4)]
Option = Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None


class Gpu(TypedDict):
    """The GPU that a plan was built on."""

    sm: Sm
    name: NotRequired[Word]
    driver: NotRequired[Word | None]


class Options(TypedDict):
    """Options of the builder; None: left to it."""

    workspace_mib: NotRequired[Option]
    level: NotRequired[Option]
    timing_cache: NotRequired[bool]


class Io(TypedDict):
    """An input or output of a plan; -1 is a dynamic axis."""

    name: Word
    shape: Annotated[list[Annotated[int, Meta(ge=-1, le=2**24)] | Word], Meta(max_length=8)]
    mode: NotRequired[Word]
    dtype: NotRequired[Word]


class Sidecar(TypedDict):
    """X.plan.json."""

    schema: Word
    flavor: Flavor
    role: Word
    precision: Word
    trt_version: Version
    profiles: Annotated[
        list[Annotated[dict[Word, Shapes], Meta(max_length=16)]], Meta(min_length=1, max_length=64)
    ]
    io: Annotated[list[Io], Meta(max_length=64)]
    plan_bytes: Annotated[int, Meta(ge=0, le=MAX_PLAN)]
    plan_sha256: Digest
    onnx: NotRequired[Word]
    onnx_sha256: NotRequired[Digest]
    manifest_sha256: NotRequired[Digest]
    targets: NotRequired[Annotated[list[Sm], Meta(max_length=64)] | None]
    built_on: NotRequired[Gpu | None]
    hardware_compatibility: NotRequired[Word]
    flags: NotRequired[Annotated[list[Word], Meta(max_length=64)] | None]
    options: NotRequired[Options | None]
    tf32: NotRequired[bool]
    layers: NotRequired[Count]
    warnings: NotRequired[Annotated[list[Text], Meta(max_length=10_000)]]
    build_seconds: NotRequired[Number]
    build_peak_mib: NotRequired[Number | None]
