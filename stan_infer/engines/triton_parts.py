"""The two parts of engine "triton", for streams: a CUDA graph for the trunk, one for the branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.parts import CHUNK
from stan_infer.engines.cuda_graphs import MAX_GRAPHS, CudaGraphs
from stan_infer.engines.stream import Parts
from stan_infer.errors import InputError

if TYPE_CHECKING:
    from stan_infer.engines.triton_session import TritonSession
    from stan_infer.network.kernel_ops import KernelOps


class TritonParts(Parts):
    """Parts of prepared weights: a CUDA graph per number of frames, and one per T of a window.

    Rows stay on the device, in the dtype of the weights; see network.kernel_ops.encode_trunk.
    """

    def __init__(self, session: TritonSession) -> None:
        """Take the session's weights of now; `load` replaces them, and ends these parts."""
        self._session, self._weights = session, session._tower
        self.windows, self.at_once = (1, session.config.max_frames), CHUNK
        device, cuda, k = session._device, session._cuda, session.config.branch_layers
        self._dtype = self._weights.patches.table.dtype
        self._trunks = CudaGraphs(self._run_trunk, device, MAX_GRAPHS, cuda)
        self._branches = CudaGraphs(
            self._run_branch, device, MAX_GRAPHS, cuda, inputs=k, dtype=self._dtype
        )

    def check_open(self) -> None:
        """Raise InputError once the session is closed, or has other weights."""
        self._session._check_open()
        if self._session._streamed is not self:
            raise InputError(
                "this session's weights were replaced, and the stream holds rows of the earlier "
                "ones: start another with session.stream"
            )

    def warm_up(self, window: int) -> None:
        """Capture the graphs of one frame and of one window of T frames."""
        side = self._session.config.image_size
        self.trunk(np.zeros((1, side, side, 3), np.uint8))
        self.branch([rows.zero_()[None] for rows in self.room(window)])

    @torch.inference_mode()
    def trunk(self, frames: np.ndarray) -> Sequence[Tensor]:
        """See Parts.trunk."""
        with self._at_work() as session:
            pixels = session._up(torch.from_numpy(frames))
            return self._trunks(pixels) if session._use_graphs else self._run_trunk(pixels)

    @torch.inference_mode()
    def branch(self, rows: Sequence[Tensor]) -> Tensor:
        """See Parts.branch; does not wait for the GPU."""
        with self._at_work() as session:
            run = self._branches if session._use_graphs else self._run_branch
            mean, frames = run(*(x.contiguous() for x in rows))
            return frames if session.keeps_rows else mean

    def room(self, frames: int) -> list[Tensor]:
        """See Parts.room."""
        session, table = self._session, self._weights.patches.table
        shape = frames, len(table) + 1, table.shape[1]
        return [
            torch.empty(shape, dtype=self._dtype, device=session._device)
            for _ in range(session.config.branch_layers)
        ]

    def clear(self) -> None:
        """Drop the CUDA graphs."""
        self._trunks.clear()
        self._branches.clear()

    def shapes(self) -> dict[str, list[Any]]:
        """Of the graphs, the last used last: numbers of frames, and [B, T] of windows."""
        trunks, branches = (g.describe()["cuda_graphs"] for g in (self._trunks, self._branches))
        return {"trunk": [frames for frames, _ in trunks], "branch": branches}

    @contextmanager
    def _at_work(self) -> Iterator[TritonSession]:
        session = self._session
        with session._alone(), session._cuda.device(session._device):
            yield session

    def _run_trunk(self, frames: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import encode_trunk

        return encode_trunk(self._ops(1, len(frames)), self._weights, frames)

    def _run_branch(self, *rows: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import encode_branch

        return encode_branch(self._ops(*rows[0].shape[:2]), self._weights, rows)

    def _ops(self, batch: int, frames: int) -> KernelOps:
        from stan_infer.network.kernel_ops import KernelOps

        session = self._session
        return KernelOps(batch, frames, session._counters, kernels=session._kernels)
