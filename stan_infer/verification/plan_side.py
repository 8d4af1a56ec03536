"""A TensorRT plan as a side of a comparison; the other steps are those of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stan_infer.artefacts.parts import PARTS
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.open import open_session
from stan_infer.engines.session import Session
from stan_infer.engines.trt_session import TrtSession
from stan_infer.errors import InputError
from stan_infer.tensorrt_plans.known_faults import faults_of
from stan_infer.tensorrt_plans.plan_file import Plan, read_plan
from stan_infer.verification.folder_side import Folder
from stan_infer.verification.side import tower_of


class PlanFile(Folder):
    """An exported folder whose towers run as TensorRT plans; the user named one of the plans."""

    kind = "plan"

    def __init__(self, path: Path) -> None:
        """Open the plan on a GPU, and the folder's plan of the other tower if it has one.

        Raises what open_session raises for a plan.
        """
        self.plan: Plan = read_plan(path)
        session = open_session(path, device="cuda")
        assert isinstance(session, TrtSession)
        self._session = session
        super().__init__(path.absolute().parent.parent, self.plan.engine)
        self.name, self.precision = str(path), self.plan.precision
        for role in ("video", "text"):
            if session.plan(role) is None:
                self._graphs.pop(role, None)

    def lacks(self, step: str) -> str | None:
        if step == "parts":
            absent = [r for r in PARTS if r in self._graphs and not self._session.has_plan(r)]
            if absent:
                return f"no {absent[0]} plan of engine {self.engine}"
            if self._session.window_profile() is None:
                return "no branch plan for one clip, which a stream needs"
            return None
        return super().lacks(step)

    @contextmanager
    def opened_session(self) -> Iterator[Session]:
        yield self._session

    def part_windows(self) -> tuple[int, int]:
        """Those of the widest profiles of the video plan and the branch's."""
        low, high = self.limits("frames")
        least, most = self._session.window_profile() or (1, 0)
        if max(low, least) > min(high, most):
            raise InputError(
                f"the plans have no number of frames in common: video {low} to {high}, branch "
                f"{least} to {most}"
            )
        return max(low, least), min(high, most)

    def limits(self, axis: str) -> tuple[int, int]:
        """See Side.limits: sizes that both the manifest and the widest profile allow."""
        low, high = super().limits(axis)
        plan = self._session.plan(tower_of(axis))
        if plan is None:
            return low, high
        place = 0 if axis in ("batch", "texts") else 1
        # All axes take the same profile, as ranges of two profiles may have no shape in common.
        ((least, _, most),) = plan.profiles[plan.widest()].values()
        return max(low, least[place]), min(high, most[place])

    def known_faults(self) -> list[dict[str, str]]:
        return faults_of(self.plan)

    def damage(self) -> list[str]:
        wrong = super().damage() or []
        try:
            self.plan.load()
        except InputError as e:
            wrong.append(str(e))
        return wrong

    def _open(self, role: str, engine: str = "ort") -> OpenGraph | InputError:
        graph = self._session.opened(role)
        # The session runs towers only; ONNX Runtime runs preprocessing and score.
        return super()._open(role, engine) if graph is None else graph
