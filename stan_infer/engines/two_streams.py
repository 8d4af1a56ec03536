"""Branch layers on a stream of their own, beside the trunk's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stan_infer.network.fused import Schedule


class TwoStreams(Schedule):
    """Runs branch layers on a second stream, beside the trunk's next layer; the head waits for it.

    One object per call. It holds the tensors that one stream made and the other reads until both
    have met, so that their memory is not reused before.
    """

    def __init__(self, branch: Any, cuda: Any) -> None:
        """branch: a stream of `cuda`, which is torch.cuda or its stand-in."""
        self._branch, self._cuda = branch, cuda
        self._held: list[object] = []

    @contextmanager
    def branch_layer(self, trunk: object) -> Iterator[None]:
        """Run what is inside on the second stream, behind the work on the current one."""
        self._held.append(trunk)
        self._branch.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._branch):
            yield

    def meet(self, cls: object) -> None:
        """Have the current stream wait for the second."""
        self._held.append(cls)
        self._cuda.current_stream().wait_stream(self._branch)
