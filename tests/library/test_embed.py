"""The order of calls and results in embed.embed_batches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.library import embed
from stan_infer.video.clip import Clip
from stan_infer.video.spec import ClipSpec

SPEC = ClipSpec(frames=2, short_side=4, crop=4)


def clip(value):
    pixels = np.full(SPEC.shape, value, np.uint8)
    return Clip(pixels, np.arange(2), 2, "pyav", (4, 4), None)


@pytest.mark.parametrize(
    ("ahead", "right"),
    [(False, ["call", 0, "call", 1, "call", 2]), (True, ["call", "call", 0, "call", 1, 2])],
)
def test_only_a_gpu_gets_the_next_call_before_the_last_is_given_out(monkeypatch, ahead, right):
    """A row that a CPU has computed can be committed before the next is computed."""
    seen = []

    def embed_video(pixels, *, as_tensor):
        seen.append("call")
        return pixels[:, 0, 0, :2, 0].astype(np.float32)

    readings = iter([(Path(str(i)), clip(i)) for i in range(3)])
    monkeypatch.setattr(
        embed, "read_clips", lambda *given, **options: (reading for reading in readings)
    )
    session = SimpleNamespace(embed_video=embed_video, has_tensors=False, runs_ahead=ahead)
    for (reading,) in embed.embed_batches(session, [], spec=SPEC):
        assert reading.features.tolist() == [int(reading.path.name)] * 2
        seen.append(int(reading.path.name))
    assert seen == right
