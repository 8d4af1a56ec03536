"""Pixels of decoded frames: known numbers, the formula, decord, the ffmpeg program."""

import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
import platform  # noqa: E402 (after importorskip)

from stan_infer.errors import InputError  # noqa: E402
from stan_infer.video import rgb  # noqa: E402
from stan_infer.video.integer_rgb import rgb_of_planes  # noqa: E402
from stan_infer.video.rgb import display_matrix, upright_rgb  # noqa: E402
from tests.video import broken_videos as make  # noqa: E402

NOWHERE = Path("made.mp4")


def made(name, width, height, *, matrix=2, limits=0, interlaced=False):
    """A frame of planes, smooth but for a sharp edge; samples of any depth."""
    frame = av.VideoFrame(width, height, name)
    frame.colorspace, frame.color_range = matrix, limits
    bits = frame.format.components[0].bits
    for i, plane in enumerate(frame.planes):
        y, x = np.mgrid[: plane.height, : plane.width]
        values = 40 + (i * 31 + x * 5 + y * 7) % 160
        values[:, plane.width // 3 :] = 210 - values[:, plane.width // 3 :] // 2
        dtype = np.dtype("<u2" if bits > 8 else np.uint8)
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size).view(dtype)
        lines[:, : plane.width] = (values << (bits - 8)) + (x + y) % (1 << (bits - 8))
    return fields(frame) if interlaced else frame


def fields(frame):
    """The same frame, marked as interlaced."""
    graph = av.filter.Graph()
    first = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=1
    )
    marks, last = graph.add("setfield", "tff"), graph.add("buffersink")
    first.link_to(marks)
    marks.link_to(last)
    graph.configure()
    matrix, limits = frame.colorspace, frame.color_range
    frame.pts = 0
    graph.push(frame)
    found = graph.pull()
    assert found.interlaced_frame
    found.colorspace, found.color_range = matrix, limits
    return found


# name: frame, CRC of its RGB pixels, and the pixel at (height // 2, width // 2). The numbers are
# those of x86-64; they were the same with PyAV 17.0, 18.1 and 19.0 and, but for one level in the
# odd size, with decord 0.6.
KNOWN = {
    "420": (dict(name="yuv420p", width=64, height=48), 1102811627, (243, 155, 255)),
    "422": (dict(name="yuv422p", width=64, height=48), 3115517876, (176, 205, 203)),
    "444": (dict(name="yuv444p", width=64, height=48), 911234789, (241, 159, 255)),
    "420 full": (dict(name="yuv420p", width=64, height=48, limits=2), 2403478233, (226, 149, 255)),
    "j420": (dict(name="yuvj420p", width=64, height=48), 2403478233, (226, 149, 255)),
    "420 BT.709": (
        dict(name="yuv420p", width=64, height=48, matrix=1),
        2226675951,
        (248, 171, 255),
    ),
    "420 interlaced": (
        dict(name="yuv420p", width=64, height=48, interlaced=True),
        1102811627,
        (243, 155, 255),
    ),
    "420 odd": (dict(name="yuv420p", width=63, height=47), 3323054757, (163, 67, 208)),
    "422 odd": (dict(name="yuv422p", width=63, height=47), 1731719434, (99, 115, 127)),
    "420 10": (dict(name="yuv420p10le", width=64, height=48), 3093694195, (245, 153, 255)),
    "420 10 interlaced": (
        dict(name="yuv420p10le", width=64, height=48, interlaced=True),
        3093694195,
        (245, 153, 255),
    ),
    "420 10 BT.2020": (
        dict(name="yuv420p10le", width=64, height=48, matrix=9),
        1413359949,
        (249, 167, 255),
    ),
    "420 12": (dict(name="yuv420p12le", width=64, height=48), 3233431051, (249, 154, 255)),
    "422 10": (dict(name="yuv422p10le", width=64, height=48), 2932413384, (175, 205, 202)),
    "444 10 full": (
        dict(name="yuv444p10le", width=64, height=48, limits=2),
        4128889499,
        (224, 152, 255),
    ),
    "gray": (dict(name="gray", width=64, height=48), 2793262576, (186, 186, 186)),
    "rgb": (dict(name="gbrp", width=64, height=48), 926508498, (155, 186, 171)),
}
EVEN_8 = ("yuv420p", "yuvj420p", "yuv422p")
ROUNDING = 4.5  # levels; the converter cuts samples to 8 bits, and rounds twice
WEIGHTS = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}  # of red and blue


def samples(frame):
    """The planes of a frame as floats on the scale of 8 bits."""
    bits = frame.format.components[0].bits
    dtype = np.dtype("<u2" if bits > 8 else np.uint8)
    found = []
    for p in frame.planes:
        lines = np.frombuffer(p, np.uint8).reshape(p.height, p.line_size).view(dtype)
        found.append(lines[:, : p.width] / float(1 << (bits - 8)))
    return found


def formula(frame, luma, u, v):
    """RGB by the definition of matrix and range, in floats."""
    scale, u, v = 1.0, u - 128, v - 128
    if frame.color_range != 2 and not frame.format.name.startswith("yuvj"):
        luma, scale = (luma - 16) * 255 / 219, 255 / 224
    red, blue = WEIGHTS.get(frame.colorspace, (0.299, 0.114))
    r, b = luma + 2 * (1 - red) * v * scale, luma + 2 * (1 - blue) * u * scale
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.stack([r, g, b], -1).clip(0, 255)


def rows_of(frame):
    """The two rows of colour whose mean each line takes; frames of even height."""
    lines = np.arange(frame.height)
    if "420" not in frame.format.name:
        return lines, lines
    if frame.format.components[0].bits == 8:
        return lines // 2, lines // 2  # as stored: a row for two lines
    upper, lower = (lines - 1) // 2, lines // 2  # odd lines: one row; even lines: between two
    upper[-1] -= 1
    return upper.clip(0), lower


@pytest.mark.parametrize("name", KNOWN)
def test_known_pixels(name):
    options, crc, middle = KNOWN[name]
    frame = made(**options)
    image = upright_rgb(frame, NOWHERE)
    assert image.shape == (frame.height, frame.width, 3) and image.dtype == np.uint8
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("FFmpeg rounds differently on other processors")
    at = tuple(image[frame.height // 2, frame.width // 2].tolist())
    assert (zlib.crc32(image.tobytes()), at) == (crc, middle)


@pytest.mark.parametrize(
    "name",
    [n for n, (o, *_) in KNOWN.items() if o["name"] in EVEN_8 and o["height"] % 2 == 0],
)
def test_known_pixels_without_ffmpegs_converter(name, monkeypatch):
    """As on other processors than x86-64, whichever runs this."""
    monkeypatch.setattr(rgb, "_IS_X86", False)
    monkeypatch.setattr(rgb, "_converter", None)
    options, crc, _ = KNOWN[name]
    assert zlib.crc32(upright_rgb(made(**options), NOWHERE).tobytes()) == crc


def every_colour(matrix, limits):
    """A frame of 4096 x 4096 in 4:2:0 that has each combination of Y, U and V."""
    frame = av.VideoFrame(4096, 4096, "yuv420p")
    frame.colorspace, frame.color_range = matrix, limits
    y, x = np.mgrid[:2048, :2048]
    luma = np.empty((4096, 4096), np.uint8)
    for i in range(4):
        luma[i // 2 :: 2, i % 2 :: 2] = y % 8 * 32 + x % 8 * 4 + i
    planes = [luma, (y // 8).astype(np.uint8), (x // 8).astype(np.uint8)]
    for plane, values in zip(frame.planes, planes, strict=True):
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        lines[:, : plane.width] = values
    return frame, planes


@pytest.mark.parametrize("matrix", [1, 4, 5, 7, 9])
@pytest.mark.parametrize("limits", [1, 2])
def test_integers_give_every_colour_of_ffmpegs_converter(matrix, limits):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("FFmpeg rounds differently on other processors")
    frame, planes = every_colour(matrix, limits)
    assert np.array_equal(rgb_of_planes(planes, matrix, limits == 2), upright_rgb(frame, NOWHERE))


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p"])
@pytest.mark.parametrize("width", [*range(1, 36), 720, 721, 1279])
def test_integers_in_every_width(name, width, monkeypatch):
    frame = made(name, width, 6, matrix=1)
    wanted = upright_rgb(frame, NOWHERE)
    monkeypatch.setattr(rgb, "_IS_X86", False)
    np.testing.assert_array_equal(upright_rgb(frame, NOWHERE), wanted)


@pytest.mark.parametrize(
    "name",
    [n for n, (o, *_) in KNOWN.items() if o["name"][3:6] in ("420", "422") and "odd" not in n],
)
def test_pixels_are_those_of_the_formula(name):
    frame = made(**KNOWN[name][0])
    luma, *colour = samples(frame)
    upper, lower = rows_of(frame)
    u, v = ((c[upper] + c[lower])[:, np.arange(frame.width) // 2] / 2 for c in colour)
    off = np.abs(formula(frame, luma, u, v) - upright_rgb(frame, NOWHERE))
    assert off.max() < ROUNDING and off.mean() < ROUNDING / 2


@pytest.mark.parametrize("name", ["yuv444p", "yuv444p10le", "yuva444p10le", "yuv440p", "yuv411p"])
@pytest.mark.parametrize("matrix", [0, 1, 2, 5, 6, 7, 8, 9, 10, 14])
@pytest.mark.parametrize("limits", [0, 1, 2])
def test_flat_colours_in_every_matrix(name, matrix, limits):
    """Matrices that FFmpeg's converter does not know, and tags that it refuses, are BT.601."""
    frame = av.VideoFrame(64, 48, name)
    frame.colorspace, frame.color_range = matrix, limits
    frame.color_trc = frame.color_primaries = 3  # reserved; PyAV 17.0 refuses it
    bits = frame.format.components[0].bits
    for plane, value in zip(frame.planes, (120, 90, 180, 255), strict=False):
        dtype = np.dtype("<u2" if bits > 8 else np.uint8)
        np.frombuffer(plane, dtype)[:] = value << (bits - 8)
    image = upright_rgb(frame, NOWHERE).astype(int)
    assert np.ptp(image.reshape(-1, 3), axis=0).max() == 0
    frame.colorspace = {10: 9}.get(matrix, matrix)
    expected = formula(frame, *(np.full((1, 1), x, float) for x in (120, 90, 180)))
    assert np.abs(expected[0, 0] - image[0, 0]).max() < ROUNDING


@pytest.mark.parametrize("height", [2, 33, 35, 47, 61, 95, 101, 48])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv422p", "yuv422p10le", "yuv444p"])
def test_pixels_are_those_of_decord(tmp_path, height, pix_fmt):
    decord = pytest.importorskip("decord")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, height, pix_fmt
        out.mux(stream.encode(made(pix_fmt, 64, height)))
        out.mux(stream.encode())
    with av.open(str(path)) as container:
        image = upright_rgb(next(container.decode(video=0)), path)
    expected = decord.VideoReader(str(path), num_threads=1)[0].asnumpy()
    np.testing.assert_array_equal(image, expected)


# Orientation

EIGHT = [
    (a, b, c, d) for x in (1, -1) for y in (1, -1) for a, b, c, d in ((x, 0, 0, y), (0, x, y, 0))
]


@pytest.mark.parametrize("matrix", EIGHT)
def test_orientations_are_those_of_the_ffmpeg_program(tmp_path, matrix):
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg program is not installed")
    plain = make.make_clip(tmp_path / "plain.mp4", frames=1, size=(48, 80))
    path = make.orient(plain, tmp_path / "turned.mp4", matrix)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (display_matrix(frame) or EIGHT[0]) == matrix
        image = upright_rgb(frame, path)
    command = "ffmpeg -v error -i turned.mp4 -f rawvideo -pix_fmt rgb24 -".split()
    raw = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(image.shape)
    # The program turns the colours of 4:2:0 before it converts them.
    assert np.abs(image.astype(int) - expected).mean() < 2
    for other in (image[::-1], image[:, ::-1], image[::-1, ::-1]):
        assert np.abs(other.astype(int) - expected).mean() > 10


@pytest.mark.parametrize("degrees", [45, 2, 91.5])
def test_other_angles_are_refused(tmp_path, degrees):
    plain = make.make_clip(tmp_path / "plain.mp4", frames=1)
    path = make.turn(plain, tmp_path / "turned.mp4", degrees)
    with av.open(str(path)) as container:
        with pytest.raises(InputError, match=r"turned\.mp4.*not a multiple of 90 degrees"):
            upright_rgb(next(container.decode(video=0)), path)


@pytest.mark.parametrize("matrix", [(1, 0.5, 0, 1), (1, 0, 0.5, 1), (1, 1, 1, 1)])
def test_slanted_pictures_are_refused(tmp_path, matrix):
    plain = make.make_clip(tmp_path / "plain.mp4", frames=1)
    path = make.orient(plain, tmp_path / "slanted.mp4", matrix)
    with av.open(str(path)) as container, pytest.raises(InputError, match="slant"):
        upright_rgb(next(container.decode(video=0)), path)


@pytest.mark.parametrize(
    "matrix", [(0, 0, 0, 0), (0, 1, 0, 1), (2, 0, 0, 2), (0.5, 0, 0, 3), (1, 0.005, -0.005, 1)]
)
def test_what_the_ffmpeg_program_ignores(tmp_path, matrix):
    plain = make.make_clip(tmp_path / "plain.mp4", frames=1)
    path = make.orient(plain, tmp_path / "a.mp4", matrix)
    images = []
    for file in (plain, path):
        with av.open(str(file)) as container:
            images.append(upright_rgb(next(container.decode(video=0)), file))
    np.testing.assert_array_equal(*images)


def test_side_data_that_pyav_does_not_know():
    """PyAV before 19 raises for it; some cameras add EXIF to every picture of an AVI."""
    display_matrix(av.VideoFrame(64, 48, "yuv420p"))
    from av.sidedata.sidedata import Type

    assert Type(999).value == 999 and Type(Type.DISPLAYMATRIX.value) is Type.DISPLAYMATRIX
