"""The two parts of engines "trt" and "trt-rtx", for streams: the plans of trunk and branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.folder import Graph
from stan_infer.artefacts.parts import PARTS, row_names
from stan_infer.engines.folder_session import check_output
from stan_infer.engines.inputs import normalised
from stan_infer.engines.stream import Parts
from stan_infer.engines.trt_graph import PlanGraph

if TYPE_CHECKING:
    from stan_infer.engines.trt_session import TrtSession


class TrtParts(Parts):
    """The opened plans of a session; rows are float32 and stay on the GPU."""

    def __init__(self, session: TrtSession) -> None:
        """Take the ranges of frames from the profiles."""
        self._session, config = session, session.config
        self._names = row_names(config)
        self._row = (1 + config.patches, config.width)
        trunk, branch = (session.plan(role) for role in PARTS)
        assert trunk is not None and branch is not None
        self.at_once = max(p["frames"][2][0] for p in trunk.profiles)
        windows = [p[self._names[0]] for p in branch.profiles]
        self.windows = min(low[1] for low, *_ in windows), max(high[1] for *_, high in windows)

    def check_open(self) -> None:
        """See Parts.check_open."""
        self._session._check_open()

    def warm_up(self, window: int) -> None:
        """Make the contexts and graphs of one frame and of one window of T frames."""
        side = self._session.config.image_size
        self.trunk(np.zeros((1, side, side, 3), np.uint8))
        self.branch([rows.zero_()[None] for rows in self.room(window)])

    def trunk(self, frames: np.ndarray) -> list[Tensor]:
        """See Parts.trunk; does not wait for the GPU."""
        graph, opened = self._opened("trunk")
        if graph.inputs[0]["dtype"] != "uint8":
            frames = normalised(self._session.config, frames[None])[0]
        found = opened(self._session._up(torch.from_numpy(frames)))
        for name in self._names:
            check_output(graph, name, found[name], (len(frames), *self._row))
        return [found[name] for name in self._names]

    def branch(self, rows: Sequence[Tensor]) -> Tensor:
        """See Parts.branch; does not wait for the GPU."""
        graph, opened = self._opened("branch")
        (b, t), e = rows[0].shape[:2], self._session.config.embed_dim
        missing = max(0, graph.dims["batch"][0] - b)  # of a fixed batch
        given = {
            name: torch.cat([x, *[x[-1:]] * missing]) if missing else x
            for name, x in zip(self._names, rows, strict=True)
        }
        name, size = (
            ("frame_embeds", (t, e)) if self._session.keeps_rows else ("video_embeds", (e,))
        )
        values = opened(*(given[name] for name in opened.inputs))[name]
        check_output(graph, name, values, (b + missing, *size))
        return values[:b]

    def room(self, frames: int) -> list[Tensor]:
        """See Parts.room."""
        return [torch.empty((frames, *self._row), device=self._session._where) for _ in self._names]

    def _opened(self, role: str) -> tuple[Graph, PlanGraph]:
        graph, opened = self._session._role(role)
        assert isinstance(opened, PlanGraph)
        return graph, opened
