"""preprocess.onnx and the video reader's resize give OpenCV's bytes, whatever the frames' size."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.engines.ort_session import inference_session
from stan_infer.export.preprocess_graph import write_preprocess
from stan_infer.video.clip import resize_crop
from stan_infer.video.synthetic import moving_frames
from tests.grids import once

cv2 = pytest.importorskip("cv2")
SIZES = ((224, 224), (256, 224), (64, 64), (16, 16), (336, 224))
FRAMES = (
    *((h, w) for h in (1, 2, 17, 224, 225, 447, 448, 720) for w in (1, 3, 224, 256, 449, 1280)),
    *((120, 160), (122, 162), (121, 161), (90, 160), (300, 400), (1080, 1920), (1920, 1080)),
    *((2160, 3840), (33, 47), (501, 333), (112, 113), (100, 1000), (1000, 100), (224, 225)),
)
# Short side, height, width whose longer side comes to exactly half a pixel. In doubles those of 320
# and 480 round down, as the scale is not exact, the others up; float32 does it otherwise.
TIES = (
    *((224, 320, 325), (224, 695, 320), (224, 448, 449), (224, 192, 201)),
    *((336, 576, 786), (336, 786, 576), (336, 480, 645), (336, 655, 480)),
)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    found = {}
    for short, crop in SIZES:
        path = tmp_path_factory.mktemp("pre") / "preprocess.onnx"
        write_preprocess(path, short_side=short, crop=crop, opset=20)
        found[short, crop] = inference_session(path)
    return found


def compare(graphs, frames, short, crop):
    """Largest difference in levels."""
    height, width = frames.shape[1:3]
    if max(height, width) * short / min(height, width) > 2**13:
        return 0  # no video has such a shape
    (got,) = graphs[short, crop].run(["pixels"], {"frames": frames})
    wanted = opencv(frames, short, crop)
    assert got.shape == wanted.shape and got.dtype == np.uint8
    assert np.array_equal(resize_crop(frames, short_side=short, crop=crop), wanted)
    return int(np.abs(got.astype(int) - wanted).max())


def opencv(frames, short, crop):
    """The oracle: the release's resize and crop."""
    scale = short / min(frames.shape[1:3])
    height, width = (int(side * scale + 0.5) for side in frames.shape[1:3])
    top, left = (height - crop) // 2, (width - crop) // 2
    large = [cv2.resize(f, (width, height), interpolation=cv2.INTER_LINEAR) for f in frames]
    return np.stack(large)[:, top : top + crop, left : left + crop]


@once(frame=FRAMES, size=SIZES)
def test_equals_opencv_to_the_byte(graphs, frame, size):
    noise = np.random.default_rng(frame[0] * frame[1]).integers(0, 256, (1, *frame, 3), np.uint8)
    assert compare(graphs, noise, *size) == 0
    assert compare(graphs, moving_frames(2, *frame), *size) == 0


@pytest.mark.parametrize(("short", "height", "width"), TIES)
def test_half_a_pixel_rounds_as_doubles_do(graphs, short, height, width):
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    assert compare(graphs, noise, short, 224) == 0


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(SIZES), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_any_size(graphs, height, width, size, n):
    noise = np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)
    assert compare(graphs, noise, *size) == 0


@pytest.mark.parametrize("opset", [18, 25])
def test_standard_operators_of_every_version(tmp_path, opset):
    path = tmp_path / "preprocess.onnx"
    write_preprocess(path, short_side=64, crop=64, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    frames = moving_frames(2, 90, 160)
    (got,) = inference_session(path).run(None, {"frames": frames})
    assert np.array_equal(got, opencv(frames, 64, 64))


def test_what_is_no_picture_is_an_error(graphs):
    for shape in ((1, 0, 5, 3), (1, 5, 0, 3), (1, 0, 0, 3), (1, 5, 5, 4), (5, 5, 3)):
        with pytest.raises(Exception, match="frames|shape|index|Gather|dimension|Invalid"):
            graphs[16, 16].run(None, {"frames": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize("short", [224, 336])
def test_openvino_is_at_most_one_level_away(tmp_path, short):
    """A size that is one off moves every pixel: more than 200 levels on noise."""
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "preprocess.onnx"
    write_preprocess(path, short_side=short, crop=224, opset=20)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", hint)
    sizes = ((120, 160), (720, 1280), (1080, 1920), (33, 47), (224, 224), (1000, 300))
    for height, width in (*sizes, *(size for wanted, *size in TIES if wanted == short)):
        noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        got = model({"frames": noise})["pixels"]
        assert np.abs(got.astype(int) - opencv(noise, short, 224)).max() <= 1, (height, width)
