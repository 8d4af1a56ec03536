"""The stage for NeMo Curator in a stand-in that keeps the rules of Curator's interface."""

import dataclasses
import sys
import types
import uuid
from typing import Generic, TypeVar

import numpy as np
import pytest

import stan_infer as si
from tests.conftest import ROOT

DEMO = ROOT / "examples" / "motion"
X, Y = TypeVar("X"), TypeVar("Y")


@dataclasses.dataclass
class Resources:
    cpus: float = 1.0
    gpus: float = 0.0


class ProcessingStage(Generic[X, Y]):
    """What a stage may define, and how an executor calls it."""

    name, resources, batch_size, runtime_env = "ProcessingStage", Resources(), 1, None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        assert not {"_name", "_resources", "_batch_size"} & cls.__dict__.keys()
        for word in ("name", "resources", "batch_size", "runtime_env"):
            assert not isinstance(cls.__dict__.get(word), property), word

    def setup(self, worker_metadata=None): ...

    def teardown(self): ...

    def process_batch(self, tasks):
        found = []
        for task in tasks:
            top, data = self.inputs()
            assert all(hasattr(task, n) for n in top) and all(hasattr(task.data, n) for n in data)
            result = self.process(task)
            found += result if isinstance(result, list) else [result] if result is not None else []
        return found


@dataclasses.dataclass
class Clip:
    uuid: uuid.UUID
    source_video: str
    span: tuple[float, float]
    buffer: bytes | None = None
    errors: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Video:
    input_video: str
    clips: list[Clip] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class VideoTask:
    dataset_name: str
    data: Video


@pytest.fixture
def stage(monkeypatch):
    """The class of examples/curator/stage.py, which finds the stand-in."""
    parts = {
        "nemo_curator.stages.base": {"ProcessingStage": ProcessingStage},
        "nemo_curator.stages.resources": {"Resources": Resources},
        "nemo_curator.tasks.video": {"VideoTask": VideoTask},
    }
    for name, values in parts.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "curator"))
    monkeypatch.delitem(sys.modules, "stage", raising=False)
    yield __import__("stage").StanEmbeddingStage
    sys.modules.pop("stage", None)


def test_clips_get_embeddings_and_errors(stage):
    files = sorted((DEMO / "clips").glob("*.mp4"))[:2]
    buffers = [*(f.read_bytes() for f in files), None, files[0].read_bytes()[:500]]
    clips = [Clip(uuid.uuid4(), "a.mp4", (i, i + 1), b) for i, b in enumerate(buffers)]
    model = str(DEMO / "motion.safetensors")
    made = stage(model)
    assert made.name == "stan_embedding" and made.resources == Resources(cpus=1.0)
    assert stage(model, resources=Resources(gpus=1.0)).resources.gpus == 1
    made.setup()
    (task,) = made.process_batch([VideoTask("set", Video("a.mp4", clips))])
    made.teardown()
    with si.open_session(model) as session:
        for clip, file in zip(task.data.clips, files, strict=False):
            right = session.embed_video(session.read_clip(file)[None])[0]
            assert np.array_equal(clip.stan_embedding, right) and clip.errors == {}
    for clip in task.data.clips[2:]:
        assert "stan_embedding" in clip.errors and not hasattr(clip, "stan_embedding")
    assert "is empty" in clips[2].errors["stan_embedding"]


def test_the_stage_is_short():
    text = (ROOT / "examples" / "curator" / "stage.py").read_text()
    assert len(text.splitlines()) < 50
