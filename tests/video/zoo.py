"""Small videos of every codec and container that are read, made with the ffmpeg command line.

`RECIPES` names the files and says how each is made. The pictures are the same in all: a pattern
that moves, below a row of eight squares, black or white, that are the bits of the frame's number.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FRAMES, HEIGHT, WIDTH = 60, 96, 128
Frames: TypeAlias = list[NDArray[np.uint8]]  # [H, W, 3] each, RGB
_BASE = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-threads", "1"]  # threads of the decoder
_ENCODER = ["-threads", "1"]  # else most encoders' bytes follow the number of cores

X264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 12 -bf 2"
OPEN = f"{X264} -x264-params open-gop=1:bframes=3:b-adapt=0:scenecut=0:rc-lookahead=5"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -g 12 -x265-params log-level=0:pools=1"
MPEG1, MPEG2, MPEG4 = (
    f"-c:v {c} -q:v 3 -bf 2 -g 12" for c in ("mpeg1video", "mpeg2video", "mpeg4")
)
VP8 = "-c:v libvpx -deadline realtime -cpu-used 8 -g 12"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 12"
AV1 = "-c:v libaom-av1 -usage realtime -cpu-used 8 -g 12"
PS = "-f vob"  # a program stream, for codecs that the plain mpeg muxer does not list
SOUND = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=2.4"


def picture(i: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Frame i of every file, uint8 [H, W, 3], RGB."""
    y, x = np.mgrid[0:height, 0:width]
    wave = np.stack([x * 3 + i * 7, y * 4 - i * 5, x + 2 * y + i * 3], -1) % 400
    image = (40 + np.minimum(wave, 400 - wave) * 0.8).astype(np.uint8)
    side = width // 8
    for bit in range(8):
        image[:side, bit * side : (bit + 1) * side] = 235 if i >> bit & 1 else 20
    return image


@dataclass(frozen=True)
class Recipe:
    """How one file is made.

    make: writes it; it gets a function that returns the path of another recipe's file, and the path
    to write.
    """

    make: Callable[[Callable[[str], Path], Path], None]


def missing() -> str:
    """Why the files cannot be made here, or nothing."""
    return "" if shutil.which("ffmpeg") else "ffmpeg, the command line tool, is not installed"


def run(*command: str | Path) -> bytes:
    """Run ffmpeg; return what it writes to standard output."""
    done = subprocess.run([*_BASE, *map(str, command)], capture_output=True)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


def encoded(options: str, *, size: tuple[int, int] = (HEIGHT, WIDTH), before: str = "") -> Recipe:
    """The pictures with ffmpeg's options. before: further inputs."""

    def make(other: Callable[[str], Path], path: Path) -> None:
        source = path.parent / "source.rgb"
        source.write_bytes(b"".join(picture(i, *size).tobytes() for i in range(FRAMES)))
        raw = f"-f rawvideo -pix_fmt rgb24 -s {size[1]}x{size[0]} -r 25 -i".split()
        run(*raw, source, *before.split(), *_ENCODER, *options.split(), path)

    return Recipe(make)


def copied(source: str, options: str = "", *, before: str = "") -> Recipe:
    """A stream copy of another file. before: options of that input, as -ss."""

    def make(other: Callable[[str], Path], path: Path) -> None:
        copy = "" if "-c:v" in options or "-c " in options else "-c copy"
        head, tail = before.split(), f"{copy} {options}".split()
        run(*head, "-i", other(source), *_ENCODER, *tail, path)

    return Recipe(make)


def joined(*sources: str) -> Recipe:
    """Files put together byte by byte, as `cat` does."""

    def make(other: Callable[[str], Path], path: Path) -> None:
        path.write_bytes(b"".join(other(source).read_bytes() for source in sources))

    return Recipe(make)


def bytes_of(source: str, begin: float, end: float = 1.0, unit: int = 1) -> Recipe:
    """A part of a file's bytes; begin, end: shares of its size, whole units of bytes."""

    def make(other: Callable[[str], Path], path: Path) -> None:
        data = other(source).read_bytes()
        first, last = (int(len(data) * share) // unit * unit for share in (begin, end))
        path.write_bytes(data[first:last])

    return Recipe(make)


def matrix(source: str, *values: float) -> Recipe:
    """An MP4 whose display matrix (tkhd, 16.16 fixed point) has the values a, b, c, d."""

    def make(other: Callable[[str], Path], path: Path) -> None:
        data = bytearray(other(source).read_bytes())
        at = data.find(b"tkhd") + 4 + 40
        a, b, c, d = values
        nine = np.array([a, b, 0, c, d, 0, 0, 0, 0x4000]) * 0x10000
        data[at : at + 36] = np.rint(nine).astype(">i4").tobytes()
        path.write_bytes(data)

    return Recipe(make)


def _codecs_and_containers() -> dict[str, Recipe]:
    """Every codec in every container that holds it."""
    files: dict[str, Recipe] = {}

    def add(codec: str, options: str, suffixes: str, **more: tuple[int, int]) -> None:
        for suffix in suffixes.split():
            name, _, muxer = suffix.partition("=")
            how = options + (f" -f {muxer}" if muxer else "")
            files[f"{codec}.{name}"] = encoded(how, **more)

    add("h264", X264, "mp4 mov mkv avi flv f4v=flv ts m2ts mts=mpegts vob mpg=vob 3gp 3g2 asf nut")
    add("h264", X264, "m4v=mp4 h264 mxf f4v=f4v")
    add("h264open", OPEN, "mp4 mkv ts avi flv h264")
    add("hevc", X265, "mp4 mov mkv ts m2ts hevc nut")
    add("vp8", VP8, "webm mkv avi ivf nut ogv=ogg")
    add("vp9", VP9, "webm mkv mp4 ivf")
    add("av1", AV1, "mp4 mkv webm ivf obu")
    add("mpeg1", MPEG1, "mpg mpeg vob ts avi m1v=mpeg1video mkv")
    add("mpeg2", MPEG2, "mpg vob ts m2ts mts=mpegts mkv mov mxf m2v=mpeg2video avi")
    add("mpeg4", MPEG4, "mp4 mov mkv avi divx=avi m4v=m4v 3gp ts nut")
    add("xvid", "-c:v libxvid -q:v 4 -bf 2 -g 12", "avi mp4")
    add("msmpeg4v2", "-c:v msmpeg4v2 -q:v 3", "avi")
    add("msmpeg4v3", "-c:v msmpeg4 -q:v 3", "avi asf wmv=asf divx=avi")
    add("wmv1", "-c:v wmv1 -q:v 3", "wmv=asf avi")
    add("wmv2", "-c:v wmv2 -q:v 3", "wmv=asf asf avi")
    add("flv1", "-c:v flv -q:v 3", "flv avi")
    add("theora", "-c:v libtheora -q:v 7 -g 12", "ogv=ogg mkv")
    add("mjpeg", "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p", "avi mov mp4 mkv")
    add("prores", "-c:v prores_ks -profile:v 1", "mov mkv")
    add("prores4444", "-c:v prores_ks -profile:v 4 -pix_fmt yuv444p10", "mov")
    big = (160, 256)  # the smallest that this codec takes
    add("dnxhr", "-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p", "mov mxf mkv", size=big)
    add("ffv1", "-c:v ffv1 -pix_fmt yuv420p", "mkv avi mov nut")
    add("ffv1rgb", "-c:v ffv1 -pix_fmt bgr0", "mkv")
    add("h263", "-c:v h263 -q:v 3", "3gp 3g2 avi")
    add("gif", "", "gif")
    add("raw", "-c:v rawvideo -pix_fmt yuv420p", "avi nut")
    add("huffyuv", "-c:v huffyuv -pix_fmt yuv422p", "avi")
    add("utvideo", "-c:v utvideo -pix_fmt yuv420p", "avi")
    add("jpeg2000", "-c:v jpeg2000 -pix_fmt yuv420p", "mov mxf")
    add("qtrle", "-c:v qtrle -g 12", "mov")
    return files


def _pixels() -> dict[str, Recipe]:
    """Bit depths, chroma formats, ranges, matrices, interlacing, sizes."""
    x264 = X264.replace("-pix_fmt yuv420p", "")
    x265 = X265.replace("-pix_fmt yuv420p", "")
    vp9 = VP9
    fields = "-flags +ildct+ilme"
    bt709 = "-vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709"
    tagged = "-color_trc bt709 -color_range tv"
    files = {
        "h264_10bit.mp4": encoded(f"{x264} -pix_fmt yuv420p10le"),
        "h264_422.mp4": encoded(f"{x264} -pix_fmt yuv422p"),
        "h264_444.mp4": encoded(f"{x264} -pix_fmt yuv444p"),
        "h264_422_10bit.mkv": encoded(f"{x264} -pix_fmt yuv422p10le"),
        "h264_rgb.mkv": encoded("-c:v libx264rgb -preset ultrafast -g 12"),
        "h264_gray.mkv": encoded(f"{x264} -pix_fmt gray"),
        "h264_full.mp4": encoded(f"{x264} -pix_fmt yuvj420p -color_range pc"),
        "h264_709.mp4": encoded(f"{X264} {bt709} {tagged}"),
        "h264_interlaced.mp4": encoded(f"{X264} {fields} -x264-params tff=1"),
        "h264_interlaced.ts": encoded(f"{X264} {fields} -x264-params bff=1"),
        "h264_intra.mp4": encoded(f"{X264} -g 1"),
        "h264_refresh.ts": encoded(f"{X264} -bf 0 -x264-params intra-refresh=1:keyint=20"),
        "h264_pyramid.mp4": encoded(
            "-c:v libx264 -preset fast -g 30 -x264-params bframes=8:b-pyramid=normal:b-adapt=0"
        ),
        "h264_one_key.mp4": encoded(f"{X264} -g 999"),
        "hevc_10bit.mkv": encoded(f"{x265} -pix_fmt yuv420p10le"),
        "hevc_422_10bit.mp4": encoded(f"{x265} -pix_fmt yuv422p10le"),
        "hevc_444.mp4": encoded(f"{x265} -pix_fmt yuv444p"),
        "hevc_open.mp4": encoded(f"{X265}:open-gop=1:bframes=4:b-adapt=0"),
        "vp8_altref.webm": encoded("-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -g 30"),
        "vp9_altref.webm": encoded("-c:v libvpx-vp9 -cpu-used 8 -lag-in-frames 16 -g 30"),
        "vp9_444.webm": encoded(f"{vp9} -pix_fmt yuv444p"),
        "vp9_10bit.webm": encoded(f"{vp9} -profile:v 2 -pix_fmt yuv420p10le"),
        "av1_10bit.mkv": encoded(f"{AV1} -pix_fmt yuv420p10le"),
        "av1_altref.mp4": encoded("-c:v libaom-av1 -cpu-used 8 -lag-in-frames 19 -g 30 -b:v 200k"),
        "svtav1.mkv": encoded("-c:v libsvtav1 -preset 12 -g 24 -svtav1-params lp=1"),
        "mpeg2_422.mpg": encoded(f"{MPEG2} -pix_fmt yuv422p"),
        "mpeg2_interlaced.mpg": encoded(f"{MPEG2} {fields} -alternate_scan 1"),
        "mpeg2_interlaced.ts": encoded(f"{MPEG2} {fields} -top 1"),
        "mpeg2_closed.mpg": encoded(f"{MPEG2} -flags +cgop -sc_threshold 1000000000"),
        "mpeg4_interlaced.avi": encoded(f"{MPEG4} {fields}"),
        "mpeg4_qpel.avi": encoded(f"{MPEG4} -flags +qpel+mv4"),
        "mjpeg_limited.avi": encoded("-c:v mjpeg -strict -1 -pix_fmt yuv420p -color_range tv"),
        "mjpeg_444.mov": encoded("-c:v mjpeg -q:v 3 -pix_fmt yuvj444p"),
        "ffv1_16bit.mkv": encoded("-c:v ffv1 -pix_fmt yuv420p16le"),
        "ffv1_410.mkv": encoded("-c:v ffv1 -pix_fmt yuv410p"),
    }
    for height, width in ((95, 127), (50, 66), (34, 18), (97, 130), (16, 254), (130, 98)):
        size = (height, width)
        suffix = "mp4" if width % 2 == height % 2 == 0 else "mkv"
        pixel = "yuv420p" if suffix == "mp4" else "yuv444p"
        files[f"h264_{width}x{height}.{suffix}"] = encoded(f"{x264} -pix_fmt {pixel}", size=size)
    files["vp9_127x95.webm"] = encoded(VP9, size=(95, 127))
    files["mpeg4_127x95.avi"] = encoded(MPEG4, size=(95, 127))
    files["mjpeg_99x77.avi"] = encoded("-c:v mjpeg -pix_fmt yuvj420p", size=(77, 99))
    files["gif_77x51.gif"] = encoded("", size=(51, 77))
    return files


def _times() -> dict[str, Recipe]:
    """Variable frame rates, offsets, edit lists, negative times, fragments, few frames."""
    uneven = "-vf select='not(mod(n\\,5)*mod(n\\,7))+lt(n\\,9)' -vsync vfr"
    return {
        **{f"vfr.{s}": encoded(f"{X264} {uneven}") for s in ("mp4", "mkv", "ts", "flv", "mov")},
        "vfr.webm": encoded(f"{VP9} {uneven}"),
        "vfr.wmv": encoded(f"-c:v wmv2 -q:v 3 {uneven} -f asf"),
        "vfr.ogv": encoded(f"-c:v libtheora -q:v 7 {uneven} -f ogg"),
        "vfr.gif": encoded(uneven),
        "vfr_avi.avi": encoded("-c:v mpeg4 -q:v 3 -vf select='mod(n\\,5)' -vsync passthrough"),
        "rate_2997.mp4": encoded(f"{X264} -vf setpts=N/(30000/1001)/TB -r 30000/1001"),
        "rate_60.ts": encoded(f"{X264} -vf setpts=N/60/TB -r 60"),
        "rate_5.flv": encoded(f"{X264} -vf setpts=N/5/TB -r 5"),
        "rate_12.mpg": encoded("-c:v mpeg1video -strict -1 -q:v 3 -r 24 -vf setpts=N/24/TB"),
        **{f"late.{s}": encoded(f"{X264} -output_ts_offset 100.5") for s in ("mp4", "mkv", "ts")},
        **{f"shifted.{s}": encoded(f"{X264} -output_ts_offset 0.5") for s in ("ts", "m2ts")},
        "shifted.mpg": encoded(f"{MPEG2} -output_ts_offset 0.5"),
        "shifted.vob": encoded(f"{MPEG2} -f vob -output_ts_offset 0.5"),
        "late.flv": encoded(f"{X264} -output_ts_offset 7"),
        "early.mkv": copied("h264.mp4", "-avoid_negative_ts disabled -copyts -output_ts_offset -1"),
        "negative_cts.mp4": encoded(f"{X264} -movflags negative_cts_offsets"),
        "no_edits.mp4": encoded(f"{X264} -use_editlist 0"),
        "fragments.mp4": encoded(f"{X264} -movflags frag_keyframe+empty_moov"),
        "fragments_dash.mp4": encoded(f"{X264} -movflags dash+frag_every_frame+empty_moov"),
        "faststart.mov": encoded(f"{X264} -movflags faststart"),
        "live.mkv": encoded(f"{X264} -live 1"),
        "live.webm": encoded(f"{VP8} -live 1"),
        "wrap.ts": encoded(f"{X264} -output_ts_offset 95442.7"),  # 33 bits at 90 kHz end here
        "one.mp4": encoded(f"{X264} -frames:v 1"),
        "two.mkv": encoded(f"{X264} -frames:v 2"),
        "three.avi": encoded(f"{MPEG4} -frames:v 3"),
        "one.gif": encoded("-frames:v 1"),
        "one.ts": encoded(f"{X264} -frames:v 1"),
        "five.webm": encoded(f"{VP9} -frames:v 5"),
    }


def _cuts() -> dict[str, Recipe]:
    """Stream copies that begin inside, parts of bytes, recordings put together."""
    files: dict[str, Recipe] = {}
    cut = "-ss 1.1"
    for source, suffixes in (
        ("h264.mp4", "mp4 mkv ts avi flv mov"),
        ("h264open.mkv", "mp4 mkv ts avi flv"),
        ("h264open.ts", "mkv ts"),
        ("hevc.mp4", "mp4 mkv ts"),
        ("hevc_open.mp4", "mp4 mkv ts"),
        ("mpeg2.mpg", "mpg ts mkv"),
        ("mpeg4.avi", "avi mkv mp4"),
        ("vp9.webm", "webm mkv"),
        ("av1.mp4", "mp4 mkv"),
        ("wmv2.wmv", "wmv=asf"),
        ("theora.ogv", "ogv=ogg"),
    ):
        for suffix in suffixes.split():
            name, _, muxer = suffix.partition("=")
            stem = source.replace(".", "_")
            how = f"-f {muxer}" if muxer else ""
            how += " -bsf:v h264_mp4toannexb" if (source[-3:], name) == ("mkv", "avi") else ""
            files[f"cut_{stem}.{name}"] = copied(source, how, before=f"-fflags +genpts {cut}")
    files["cut_end.mp4"] = copied("h264.mp4", "-t 1.03")
    files["cut_copyts.mkv"] = copied("h264open.mkv", "-copyts", before=cut)
    files["cut_refresh.ts"] = bytes_of("h264_refresh.ts", 0.31, unit=188)
    for source in ("h264.ts", "h264open.ts", "hevc.ts", "mpeg2.ts"):
        stem = source.replace(".", "_")
        files[f"bytes_{stem}.ts"] = bytes_of(source, 0.37, unit=188)
        files[f"odd_bytes_{stem}.ts"] = bytes_of(source, 0.37)
    files["bytes_mpeg2.mpg"] = bytes_of("mpeg2.mpg", 0.37, unit=2048)
    files["bytes_h264.h264"] = bytes_of("h264.h264", 0.37)
    files["joined_h264.ts"] = joined("h264.ts", "h264.ts")
    files["joined_two.ts"] = joined("h264open.ts", "rate_60.ts")
    # Times of the second part lie between those of the first.
    files["joined_shifted.ts"] = joined("h264.ts", "shifted.ts")
    files["joined_shifted.m2ts"] = joined("shifted.m2ts", "h264.m2ts")
    files["joined_shifted.mpg"] = joined("mpeg2.mpg", "shifted.mpg")
    files["joined_shifted.vob"] = joined("mpeg2.vob", "shifted.vob")
    files["joined_late.ts"] = joined("late.ts", "h264.ts")
    files["joined_mpeg2.ts"] = joined("mpeg2.ts", "mpeg2.ts")
    files["joined_three.ts"] = joined("vfr.ts", "h264.ts", "vfr.ts")
    files["joined_mpeg1.mpg"] = joined("mpeg1.mpg", "mpeg1.mpg")
    files["joined_mpeg2.mpg"] = joined("mpeg2.mpg", "mpeg2_closed.mpg")
    files["joined_mpeg2.vob"] = joined("mpeg2.vob", "mpeg2.vob")
    files["joined_h264.h264"] = joined("h264.h264", "h264.h264")
    files["joined_hevc.ts"] = joined("hevc.ts", "hevc.ts")
    files["joined_cut.ts"] = joined("bytes_h264open_ts.ts", "h264.ts")
    return files


def _streams() -> dict[str, Recipe]:
    """Sound, subtitles, covers, further videos; turned and mirrored pictures."""
    both = "-map 1:a -map 0:v"
    files = {
        f"sound_first.{suffix}": encoded(f"{both} {codec}", before=SOUND)
        for suffix, codec in (
            ("mp4", f"{X264} -c:a aac"),
            ("mkv", f"{X264} -c:a libmp3lame"),
            ("ts", f"{X264} -c:a mp2"),
            ("avi", f"{MPEG4} -c:a libmp3lame"),
            ("flv", f"{X264} -c:a aac"),
            ("mpg", f"{MPEG1} -c:a mp2"),
            ("vob", f"{MPEG2} -c:a ac3"),
            ("webm", f"{VP8} -c:a libvorbis"),
            ("ogv", "-c:v libtheora -q:v 7 -c:a libvorbis -f ogg"),
            ("wmv", "-c:v wmv2 -q:v 3 -c:a wmav2 -f asf"),
            ("mov", f"{X264} -c:a pcm_s16le"),
            ("3gp", "-c:v h263 -q:v 3 -ar 8000 -ac 1 -c:a aac"),
            ("m2ts", f"{X264} -c:a ac3"),
        )
    }
    small = "-map 0:v -map 0:v -filter:v:1 scale=64:48"
    files["late_sound.mp4"] = encoded(f"{both} {X264} -c:a aac", before=f"-itsoffset 0.7 {SOUND}")
    files["late_video.mkv"] = encoded(f"{both} -vf setpts=PTS+1.3/TB {X264} -c:a aac", before=SOUND)
    files["sound.mxf"] = encoded(
        f"-map 0:v -map 1:a {MPEG2} -ar 48000 -c:a pcm_s16le", before=SOUND
    )
    files["two_videos.mp4"] = encoded(f"{small} {X264}")
    files["two_videos.mkv"] = encoded(f"{small} {X264}")
    files["two_videos.ts"] = encoded(f"{small} {X264}")
    files["cover.mp4"] = encoded(
        f"-map 0:v -map 1:v {X264} -c:v:1 png -disposition:v:1 attached_pic -frames:v:1 1",
        before="-f lavfi -i color=red:size=400x400:rate=1:duration=1",
    )
    for turn in (90, 180, 270):
        files[f"turned_{turn}.mp4"] = copied("h264.mp4", f"-metadata:s:v:0 rotate={turn}")
    files["turned_90.mov"] = copied("mjpeg.mov", "-metadata:s:v:0 rotate=90")
    files["mirrored.mp4"] = matrix("h264.mp4", -1, 0, 0, 1)
    files["flipped.mp4"] = matrix("h264.mp4", 1, 0, 0, -1)
    files["transposed.mp4"] = matrix("h264.mp4", 0, 1, 1, 0)
    files["antitransposed.mp4"] = matrix("h264.mp4", 0, -1, -1, 0)
    return files


RECIPES: dict[str, Recipe] = {
    **_codecs_and_containers(),
    **_pixels(),
    **_times(),
    **_cuts(),
    **_streams(),
}


class Zoo:
    """The files, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str) -> Path:
        """Return the path of one recipe's file."""
        path = self.folder / name
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as place:
                RECIPES[name].make(self.file, Path(place) / name)
                os.replace(Path(place) / name, path)
        return path


def frames_of(path: Path, flags: str = "bilinear") -> Frames:
    """What the ffmpeg command line shows: every frame once, turned, as RGB [H, W, 3]."""
    to_ppm = f"-vsync passthrough -sws_flags {flags} -f image2pipe -c:v ppm -pix_fmt rgb24"
    done = subprocess.run([*_BASE, "-i", path, *to_ppm.split(), "-"], capture_output=True)
    data, at, frames = done.stdout, 0, []
    while at < len(data):
        end = at
        for _ in range(3):
            end = data.index(b"\n", end) + 1
        _, size, _ = data[at:end].split(b"\n")[:3]
        width, height = map(int, size.split())
        pixels = np.frombuffer(data, np.uint8, height * width * 3, end)
        frames.append(pixels.reshape(height, width, 3))
        at = end + pixels.size
    return frames


def right_frames(zoo: Zoo, name: str) -> Frames:
    """What a reader should give for a file: what ffmpeg shows, or nothing if it cannot be read."""
    frames = frames_of(zoo.file(name))
    if name == "bytes_hevc_ts.ts":  # ffmpeg makes up a picture that comes before the first key
        return [frame for frame in frames if number(frame) in range(24, FRAMES)]
    if name == "cut_av1_mp4.mp4":  # ffmpeg 5.1 with dav1d shows what the edit list leaves out
        return [frame for frame in frames if number(frame) >= 28]
    return frames


def number(image: NDArray[np.uint8]) -> int:
    """The number in the squares of a picture that was neither turned nor mirrored."""
    side = image.shape[1] // 8
    inner = slice(side // 4, side - side // 4)
    squares = (image[inner, bit * side :][:, inner] for bit in range(8))
    return sum(int(square.mean() > 128) << bit for bit, square in enumerate(squares))


def difference(found: Frames, right: Frames) -> tuple[int, float]:
    """The largest difference of a value, of 255, and the largest mean of a frame."""
    assert len(found) == len(right), f"{len(found)} frames instead of {len(right)}"
    largest, mean = 0, 0.0
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        apart = np.abs(a.astype(np.int16) - b)
        largest, mean = max(largest, int(apart.max())), max(mean, float(apart.mean()))
    return largest, mean


# Where FFmpeg's versions convert to RGB in different ways, edges of colours differ: more than 8
# bits, interlaced chroma, 4:2:0 of odd height, chroma in fourths. A wrong frame differs by 200.
_CONVERTED = re.compile("10bit|16bit|interlaced|127x95.avi|99x77|410")


def limits(name: str) -> tuple[int, float]:
    """Allowed for a file, as `difference` gives it. Measured: 0 and 0; 41 and 2.5 where pixels are
    converted in another way."""
    return (48, 4.0) if _CONVERTED.search(name) else (2, 0.1)
