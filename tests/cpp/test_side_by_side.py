"""Long videos in H.264 are decoded by several threads: frames and refusals are those of one."""

import json
import subprocess

import pytest

from tests.cpp.conftest import MOTION, ort_library

av = pytest.importorskip("av")

from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

CLIP = MOTION / "clips" / "red_cross_moves_left.mp4"
X264 = "keyint=8:min-keyint=8:scenecut=0:bframes=2"
KINDS = {
    "closed.mp4": {"x264": X264},
    "slices.mkv": {"x264": X264 + ":slices=3"},
    "10 bit.mp4": {"x264": X264, "pix_fmt": "yuv420p10le"},
    "lists.mp4": {"x264": X264 + ":cqm=jvt"},
    "4:4:4.mp4": {"x264": X264 + ":cqm=jvt", "pix_fmt": "yuv444p"},
    "headers.ts": {"x264": X264 + ":repeat-headers=1"},
    "headers.mkv": {"x264": X264 + ":repeat-headers=1"},
}
ALONE = {
    "open.mp4": {"x264": X264 + ":open-gop=1"},
    "fields.mp4": {"x264": X264 + ":interlaced=1"},
    "refresh.mp4": {"x264": X264 + ":intra-refresh=1"},
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 8},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=8:log-level=none"}},
    "one group.mp4": {"x264": "keyint=99:scenecut=0"},
}
# Supplemental enhancement information: type, size, content, and the bit that closes it.
MESSAGES = {
    "another x264": b"\x05\x1f" + bytes([7]) * 16 + b"x264 - core 066" + b"\x80",
    "film grain": b"\x13\x01\x80\x80",
    "film grain of AOM": b"\x04\x04\xb5\x58\x90\x80\x80",
    "a rotation": b"\x2f\x05\x50\x80\x10\x10\x10\x80",
}
HARMLESS = {"captions": b"\x04\x04\xb5\x10\x31\x80\x80", "a time": b"\x01\x01\x10\x80"}


@pytest.fixture(scope="session", params=["plain", "sanitized", "raced"])
def program(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    return made(tmp_path_factory.mktemp("closed"), "closed.mp4", KINDS["closed.mp4"])


def made(folder, name, settings):
    return make.make_clip(folder / name, frames=64, size=(96, 128), **settings)


def read(program, path, folder, *settings):
    """Exit code, message, and what was read: numbers, shapes, pixels; then how many decoders."""
    out = folder / "raw"
    out.write_bytes(b"")
    done = program.run("frames", path, "8", out, *map(str, settings), probe=True)
    answer = json.loads(done.stdout or "{}")
    decoders = answer.pop("decoders", None)
    return (done.returncode, done.stderr, answer, out.read_bytes()), decoders


def decoders_of(program, path, folder):
    """Of three threads; None where all refuse."""
    wanted, one = read(program, path, folder, 1)
    found, several = read(program, path, folder, 3)
    assert without_log(found) == without_log(wanted)
    assert one in (1, None)
    return several


def without_log(answer):
    """FFmpeg's own lines name addresses, and there are more of them where all begins again."""
    code, message, *rest = answer
    return code, [line for line in message.splitlines() if line.startswith("error: ")], *rest


def rewritten(source, target, change):
    """A copy in which `change` got every packet's number and bytes."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for i, packet in enumerate(p for p in container.demux(stream) if p.size):
            new = av.Packet(change(i, bytes(packet)))
            new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
            new.stream, new.is_keyframe = copy, packet.is_keyframe
            out.mux(new)
    return target


def with_unit(source, target, number, unit):
    """A copy with a unit more at the start of a packet, in a file of units with their lengths."""
    more = len(unit).to_bytes(4, "big") + unit
    return rewritten(source, target, lambda i, data: more * (i == number) + data)


def picture_set(path):
    """The picture parameter set behind a single sequence parameter set (avcC)."""
    with av.open(str(path)) as container:
        extra = container.streams.video[0].codec_context.extradata
    at = 8 + int.from_bytes(extra[6:8], "big") + 1
    return extra[at + 2 : at + 2 + int.from_bytes(extra[at : at + 2], "big")]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_frames(program, tmp_path, name):
    path = made(tmp_path, name, KINDS[name])
    assert decoders_of(program, path, tmp_path) == 3


@pytest.mark.parametrize("name", ALONE)
def test_one_decoder_where_the_same_is_not_certain(plain, tmp_path, name):
    assert decoders_of(plain, made(tmp_path, name, ALONE[name]), tmp_path) == 1


@pytest.mark.parametrize("settings", [(1, 0), (3, 64 * 128 * 96), (3, 2**30)], ids=str)
def test_one_decoder_where_several_do_not_pay(plain, closed, tmp_path, settings):
    assert read(plain, closed, tmp_path, *settings)[1] == 1


@pytest.mark.parametrize(
    ("settings", "decoders"), [((2, 0), 2), ((99, 0), 8), ((3, 128 * 96 * 20), 3)], ids=str
)
def test_as_many_as_may_and_as_pay(plain, closed, tmp_path, settings, decoders):
    assert read(plain, closed, tmp_path, *settings)[1] == decoders


@pytest.mark.parametrize("name", ["closed.mp4", "slices.mkv"])
def test_damage_is_refused_as_by_one(plain, tmp_path, name):
    path = made(tmp_path, name, KINDS[name])
    found = set()
    for i in range(64):
        hurt = make.damage(path, tmp_path / f"hurt {name}", i, keep=12 + i % 40)
        found.add(decoders_of(plain, hurt, tmp_path))
    assert found == {None, 3}  # that of frames which nobody needs is not seen


@pytest.mark.parametrize("number", [0, 1, 16, 17, 33])
def test_a_missing_slice_is_refused_as_by_one(program, tmp_path, number):
    """Here the threads of FFmpeg 5 itself would show pictures that are not whole."""
    path = made(tmp_path, "slices.mkv", KINDS["slices.mkv"])

    def change(i, data):
        last = len(data)  # the last unit is a slice
        at = 0
        while at < len(data):
            last, at = at, at + 4 + int.from_bytes(data[at : at + 4], "big")
        return data[:last] if i == number else data

    hurt = rewritten(path, tmp_path / "hurt.mkv", change)
    assert decoders_of(program, hurt, tmp_path) is None


def test_a_set_of_parameters_that_comes_late(plain, closed, tmp_path):
    """It counts for all groups behind it, which a decoder of theirs alone would not know."""
    base = made(tmp_path, "base.mp4", {"x264": X264 + ":qp=24"})
    other = made(tmp_path, "other.mp4", {"x264": X264 + ":qp=24:chroma-qp-offset=6"})
    assert picture_set(base) != picture_set(other)
    late = with_unit(base, tmp_path / "late.mp4", 1, picture_set(other))
    assert decoders_of(plain, late, tmp_path) == 1
    pixels, wanted = (read(plain, p, tmp_path, 1)[0][3] for p in (late, base))
    frame = len(wanted) // 8
    assert len(pixels) == len(wanted) and pixels[-frame:] != wanted[-frame:]
    # Also where it is the first one over again, as only the first packet is compared with.
    again = with_unit(base, tmp_path / "again.mp4", 1, picture_set(base))
    assert decoders_of(plain, again, tmp_path) == 1
    first = with_unit(base, tmp_path / "first.mp4", 0, picture_set(other))
    assert decoders_of(plain, first, tmp_path) == 3


@pytest.mark.parametrize("name", [*MESSAGES, *HARMLESS])
def test_messages_about_later_pictures(plain, closed, tmp_path, name):
    unit = b"\x06" + {**MESSAGES, **HARMLESS}[name]
    path = with_unit(closed, tmp_path / "with.mp4", 1, unit)
    assert decoders_of(plain, path, tmp_path) == (3 if name in HARMLESS else 1)


@pytest.mark.parametrize("unit", [b"\x09\x10\0\0\1\x68\xce", b"\x09\x10\0\0\1\x06\x13\x01\x80\x80"])
def test_a_unit_inside_a_unit(plain, closed, tmp_path, unit):
    path = with_unit(closed, tmp_path / "with.mp4", 1, unit)
    assert decoders_of(plain, path, tmp_path) in (1, None)


def test_calls_end(program, closed):
    done = program.run("cancel", closed, "3", probe=True)
    assert done.returncode == 2 and done.stderr == "error: the call was cancelled\n"
    done = program.run("deadlines", closed, "3", probe=True)
    assert done.returncode == 0, done.stderr  # FFmpeg logs what it was kept from


COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
int avcodec_open2(void *context, const void *codec, void **options) {
  int (*real)(void *, const void *, void **) = dlsym(RTLD_NEXT, "avcodec_open2");
  fprintf(stderr, "opened\\n");
  return real(context, codec, options);
}
"""


def test_the_threads_of_the_model_read_long_videos(plain, small, tmp_path):
    (tmp_path / "count.c").write_text(COUNTER)
    library = tmp_path / "count.so"
    command = ["cc", "-shared", "-fPIC", tmp_path / "count.c", "-o", library, "-ldl"]
    subprocess.run(command, check=True)
    settings = {"x264": "keyint=8:scenecut=0", "options": {"preset": "ultrafast"}}
    film = make.make_clip(tmp_path / "film.mp4", frames=32, size=(2176, 3840), **settings)

    def opened(path, threads):
        environment = {"LD_PRELOAD": str(library), "STAN_INFER_ORT_LIBRARY": str(ort_library())}
        program = type(plain)(plain.build, plain.openvino, environment)
        done = program.run(small, path, "--threads", str(threads), "--embed")
        assert done.returncode == 0, done.stderr
        return done.stderr.count("opened"), done.stdout

    assert opened(CLIP, 1) == opened(CLIP, 2)
    one, several = opened(film, 1), opened(film, 2)
    assert several[0] > one[0] and several[1] == one[1]
