"""pipeline.add_stage(StanEmbeddingStage("folder", "cuda", resources=Resources(gpus=1.0)))"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks.video import VideoTask

import stan_infer as si
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec


@dataclass
class StanEmbeddingStage(ProcessingStage[VideoTask, VideoTask]):
    model: str  # a checkpoint or an exported folder, which every machine has
    device: str = "cpu"
    name: str = "stan_embedding"
    resources: Resources = field(default_factory=lambda: Resources(cpus=1.0))

    def inputs(self):
        return ["data"], ["clips"]

    def outputs(self):
        return ["data"], ["clips"]

    def setup(self, worker_metadata=None):
        self._session = si.open_session(self.model, device=self.device)
        self._spec, self._worker = ClipSpec.of(self._session.config), DecodeWorker()

    def teardown(self):
        self._worker.close()
        self._session.close()

    def process(self, task):
        """Give each clip `stan_embedding`, float32 [E], or a reason in its `errors`."""
        with tempfile.TemporaryDirectory() as folder:
            for clip in task.data.clips:
                (file := Path(folder, f"{clip.uuid}.mp4")).write_bytes(clip.buffer or b"")
                try:  # in a process of its own, which is ended if the clip hangs it
                    pixels = self._worker.read(file, self._spec).pixels
                    clip.stan_embedding = self._session.embed_video(pixels[None])[0]
                except si.InputError as error:
                    clip.errors["stan_embedding"] = str(error)
                file.unlink()
        return task
