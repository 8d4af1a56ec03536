"""Engines "trt" and "trt-rtx": the plans of an exported folder, on torch CUDA tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.checked_graph import CheckedGraph
from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.parts import PARTS, row_names
from stan_infer.engines.folder_session import FolderSession, check_output
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.inputs import normalised
from stan_infer.engines.stream import Parts
from stan_infer.engines.torch_session import clip_tensor, torch_device
from stan_infer.engines.trt_graph import PlanGraph
from stan_infer.errors import InputError, MissingError
from stan_infer.tensorrt_plans.api import load_tensorrt, version_of
from stan_infer.tensorrt_plans.plan_file import (
    FORMATS,
    Plan,
    check_device,
    check_origin,
    check_version,
    plans_of,
    read_plan,
)


class TrtSession(FolderSession):
    """A folder's plans in TensorRT; see engines.session.Session. For the thread that opens it.

    Clips may lie on the GPU; with as_tensor=True their embeddings stay there.
    """

    engine = "trt"

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str = "cuda",
        precision: str | None = None,
        plan: Path | None = None,
        auto_rebuild: bool = False,
        cuda_graphs: bool = True,
        cuda: Any = torch.cuda,
    ) -> None:
        """Open the plans of the video and text graphs, of which one may be absent.

        Those of trunk and branch are opened when a stream first needs them.

        plan: the one to take for its graph; for others the first in engines/ that is for this
        engine, version and GPU. auto_rebuild: build a plan for another version or GPU again, from
        the folder's ONNX. cuda_graphs: see PlanGraph. Raises InputError for a folder without plans
        and for plans that were changed, or built for something else; MissingError where TensorRT or
        the GPU is not here.
        """
        given = read_plan(plan, check_hash=False) if plan else None
        self._auto_rebuild, self._cuda = auto_rebuild, cuda
        self._use_graphs = cuda_graphs
        self._running: dict[str, Plan] = {}
        self._plans = plans_of(artefact, self.engine, given)
        if not self._plans.keys() & {"video", "text"}:
            what = f"a tower for engine {self.engine}" if self._plans else f"engine {self.engine}"
            raise InputError(
                f"folder {artefact.path} holds no plan of {what}: "
                f"stan-infer export {artefact.path} --format {FORMATS[self.engine]}"
            )
        super().__init__(artefact, device=device, precision=precision)

    def has(self, graph: Graph) -> bool:
        return graph.role in self._plans

    def open(
        self, graph: Graph, checked: CheckedGraph, precision: str, threads: int | None
    ) -> PlanGraph:
        try:
            plan = self._fitting(self._plans[graph.role])
        except InputError:
            if not self._auto_rebuild:
                raise
            from stan_infer.tensorrt_plans.build import rebuild_plan

            old = self._plans[graph.role][0]
            check_version(old, old.version)  # refuses a plan with host code
            self._choose_gpu()
            gpu = self._where.index or 0
            rebuilt = rebuild_plan(self._artefact, old, sm=self._sm(), gpu=gpu)
            plan = self._fitting([rebuilt])
        check_origin(self._artefact, graph, plan)
        self._running[graph.role] = plan
        return PlanGraph(
            plan,
            load_tensorrt(self.engine),
            self._where,
            cuda_graphs=self._use_graphs,
            cuda=self._cuda,
        )

    def plan(self, role: str) -> Plan | None:
        """The plan that runs a graph of the folder."""
        return self._running.get(role)

    def has_plan(self, role: str) -> bool:
        """Whether there is a plan of a graph of the folder, opened or not."""
        return role in self._plans

    def window_profile(self) -> tuple[int, int] | None:
        """The smallest and largest window in the widest profile of the branch's plan for one clip.

        None: there is none, so that nothing can be streamed.
        """
        self._parts()
        branch, name = self._running["branch"], row_names(self.config)[0]
        fitting = [i for i, p in enumerate(branch.profiles) if p[name][0][0] == 1]
        if not fitting:
            return None
        least, _, most = branch.profiles[max(fitting, key=branch.span)][name]
        return least[1], most[1]

    def opened(self, role: str) -> PlanGraph | None:
        """A graph's plan in TensorRT."""
        found = self._opened.get(role)
        assert found is None or isinstance(found, PlanGraph)
        return found

    def _video(self, video: Any) -> Tensor:
        """Return a tensor on the device, perhaps still being computed."""
        graph, opened = self._role("video")
        assert isinstance(opened, PlanGraph)
        clips = clip_tensor(self.config, video, functools.partial(self._check_clips, graph))
        dtype = str(clips.dtype).removeprefix("torch.")
        output, wanted = self._check_clips(graph, tuple(clips.shape), dtype)
        if dtype != graph.inputs[0]["dtype"]:
            clips = torch.from_numpy(normalised(self.config, clips.cpu().numpy()))
        if missing := wanted[0] - len(clips):
            clips = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])])
        values = opened(self._up(clips))[output]
        check_output(graph, output, values, wanted)
        return values[: len(clips) - missing]

    def _up(self, pixels: Tensor) -> Tensor:
        """Pixels on the GPU, without waiting."""
        if pixels.device != self._where and self._cuda.is_available() and not pixels.is_cuda:
            pixels = pixels.contiguous().pin_memory()
        return pixels.to(self._where, non_blocking=True)

    def _parts(self) -> Parts:
        """See Session.stream; the plans of both parts are opened when they are first needed."""
        for role in PARTS:
            if self._artefact.graph(role) is not None:
                self._check_plan(role, ",".join(PARTS), ", which a stream needs")
        self._open_parts(f"--split --format {FORMATS[self.engine]}")
        return _TrtParts(self)

    def _check_plan(self, role: str, plans: str, why: str = "") -> None:
        """Raise InputError where a graph has no plan; plans: the --plans to build then."""
        if role not in self._plans:
            raise InputError(
                f"folder {self._artefact.path} has no {role} plan of engine {self.engine}{why}: "
                f"stan-infer export {self._artefact.path} --format {FORMATS[self.engine]} "
                f"--plans {plans}"
            )

    def describe(self) -> dict[str, Any]:
        hashes = {role: plan.sidecar["plan_sha256"] for role, plan in self._running.items()}
        return super().describe() | {"plan_sha256": hashes}

    def _role(self, role: str) -> tuple[Graph, OpenGraph]:
        if role not in self._graphs and self._artefact.graph(role) is not None:
            self._check_plan(role, role)
        return super()._role(role)

    def _fitting(self, plans: Sequence[Plan]) -> Plan:
        """Return the first plan for the installed version and the GPU.

        Raises InputError if there is none, which says why the first plan is not.
        """
        refusals = []
        for plan in plans:
            try:
                check_version(plan, version_of(load_tensorrt(self.engine)))
                self._choose_gpu()
                check_device(plan, self._sm(), self._cuda.get_device_name(self._where))
                read_plan(plan.path)  # checks its hash
                return plan
            except InputError as e:
                refusals.append(e)
        raise refusals[0]

    def _choose_gpu(self) -> None:
        if not self._cuda.is_available():
            raise MissingError(
                f"engine {self.engine} needs an NVIDIA GPU with its driver, and torch finds none "
                "here: use --engine ort or openvino"
            )
        if self._device.partition(":")[0] != "cuda":
            raise InputError(
                f"engine {self.engine} runs on NVIDIA GPUs, not on {self._device}: leave --device "
                "out, or give cuda"
            )
        self._where = self._tensors_on = torch_device(self._device)

    def _sm(self) -> str:
        return "sm_" + "".join(map(str, self._cuda.get_device_capability(self._where)))


class _TrtParts(Parts):
    """The opened plans of a session; rows are float32 and stay on the GPU."""

    def __init__(self, session: TrtSession) -> None:
        self._session, config = session, session.config
        self._names = row_names(config)
        self._row = (1 + config.patches, config.width)
        trunk, branch = (session.plan(role) for role in PARTS)
        assert trunk is not None and branch is not None
        self.at_once = max(p["frames"][2][0] for p in trunk.profiles)
        windows = [p[self._names[0]] for p in branch.profiles]
        self.windows = min(low[1] for low, *_ in windows), max(high[1] for *_, high in windows)

    def check_open(self) -> None:
        self._session._check_open()

    def warm_up(self, sizes: Iterable[int], window: int) -> None:
        side = self._session.config.image_size
        for count in sizes:
            self.trunk(np.zeros((count, side, side, 3), np.uint8))
        self.branch([rows.zero_()[None] for rows in self.room(window)])

    def trunk(self, frames: np.ndarray) -> list[Tensor]:
        graph, opened = self._opened("trunk")
        if graph.inputs[0]["dtype"] != "uint8":
            frames = normalised(self._session.config, frames[None])[0]
        found = opened(self._session._up(torch.from_numpy(frames)))
        for name in self._names:
            check_output(graph, name, found[name], (len(frames), *self._row))
        return [found[name] for name in self._names]

    def branch(self, rows: Sequence[Tensor]) -> Tensor:
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
        return [torch.empty((frames, *self._row), device=self._session._where) for _ in self._names]

    def _opened(self, role: str) -> tuple[Graph, PlanGraph]:
        graph, opened = self._session._role(role)
        assert isinstance(opened, PlanGraph)
        return graph, opened


class TrtRtxSession(TrtSession):
    """A folder's plans in TensorRT for RTX."""

    engine = "trt-rtx"
