"""OpenGraph: the interface of one graph that a runtime has opened."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

TensorType = tuple[str, tuple[int | None, ...]]  # numpy's name of the dtype; sizes, None if free


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph by name."""

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]


def graph_name(graph: Path | bytes, name: str) -> str:
    """Return what errors call a graph: `name`, or else the name of its file."""
    return name or ("the graph" if isinstance(graph, bytes) else graph.name)


class OpenGraph(ABC):
    """One graph that a runtime has opened."""

    package: ClassVar[str]  # the runtime's, whose version describe() gives under this name

    @abstractmethod
    def signature(self) -> Signature:
        """Inputs and outputs as the runtime reports them."""

    @abstractmethod
    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the named outputs, or all; every error of the runtime becomes a StanError."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What runs: see Session.describe."""

    def count_8_bits(self) -> int | None:
        """How many linears this runtime really runs in 8 bits; None where that is not known."""
        return None

    def close(self) -> None:  # noqa: B027 (most runtimes free a graph by themselves)
        """Free the memory."""
