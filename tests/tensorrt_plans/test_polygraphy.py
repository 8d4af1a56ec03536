"""NVIDIA's Polygraphy on our graphs: what it says of them, and what it computes with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from tests.conftest import clips

pytest.importorskip("polygraphy", reason='polygraphy is not here: pip install ".[dev]"')


@pytest.mark.parametrize("name", ["video", "text", "preprocess"])
def test_inspect_model_reads_it(exported, name):
    tool = Path(sys.executable).with_name("polygraphy")
    done = subprocess.run(
        [tool, "inspect", "model", exported / f"{name}.onnx"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    inputs = {"video": "video [dtype=uint8", "text": "input_ids [dtype=int32"}
    assert inputs.get(name, "frames [dtype=uint8") in done.stdout


def test_its_onnx_runtime_agrees_with_ours(exported):
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    session = si.open_session(exported)
    with OnnxrtRunner(SessionFromOnnx(str(exported / "video.onnx"))) as runner:
        for b, t in ((1, 6), (2, 3), (3, 64)):
            video = clips(b, t, 16, seed=t)
            got = runner.infer({"video": video})["video_embeds"]
            assert np.array_equal(got, session.embed_video(video))
