"""Make small clips, whole and broken, for the tests of the decoders. Nothing here is random."""

import contextlib
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stan_infer.video.pictures import Pictures
from stan_infer.video.rgb import upright_rgb


def cores():
    """The numbers of the cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextlib.contextmanager
def on_cores(some):
    """This thread, and those that it starts, run on these cores only: FFmpeg counts them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, some)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def picture(i, height=48, width=64):
    """A picture that differs for every frame number."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 2 + i * 5, y * 3 + i * 7, x + y + i * 11], -1).astype(np.uint8)


def make_clip(
    path,
    *,
    frames=30,
    size=(48, 64),
    codec="libx264",
    pix_fmt="yuv420p",
    container=None,
    options=None,
    x264=None,
    gop=None,
    b_frames=None,
    times=None,
    muxer=None,
    title="",
):
    """Encode `frames` pictures at 25 a second, or at the given times (in 1/25 s)."""
    options = {"threads": "1"} | (options or {})  # else bytes follow the number of cores
    if x264:
        options["x264-params"] = x264
    with av.open(str(path), "w", format=container, options=muxer or {}) as out:
        out.metadata["title"] = title
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if gop is not None:
            stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = (i if times is None else times[i]), Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return Path(path)


def make_audio(path):
    """A file with sound and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        for i in range(8):
            sound = np.sin(np.arange(1024, dtype=np.float32) / 9)[None]
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return Path(path)


def make_png(path):
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        out.mux(stream.encode())
    return Path(path)


def make_exif(path, orientation):
    """Three JPEG pictures of 64 x 48 whose EXIF asks for an orientation (1 to 8)."""
    tag = struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tag
    plain = make_clip(
        Path(path).with_suffix(".plain.avi"), frames=3, codec="mjpeg", pix_fmt="yuvj420p"
    )
    with av.open(str(plain)) as container, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                data = bytes(packet)
                app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
                made = av.Packet(data[:2] + app1 + data[2:])
                made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                made.stream, made.is_keyframe = copy, True
                out.mux(made)
    return Path(path)


def packets(path):
    """The packets that hold pictures, as (bytes, pts, is_keyframe)."""
    with av.open(str(path)) as container:
        return [(bytes(p), p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]


def remux(source, target, *, skip=0, earlier=0, pts_is_dts=False, muxer=None):
    """Copy without the first `skip` packets; `earlier` shifts times: an edit list.

    pts_is_dts: times rise as packets do, as programs write them that know no other time.
    """
    with av.open(str(source)) as container, av.open(str(target), "w", options=muxer or {}) as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        kept = [p for p in container.demux(stream) if p.size][skip:]
        for packet in kept:
            packet.pts -= earlier
            packet.dts -= earlier
            packet.pts = packet.dts if pts_is_dts else packet.pts
            packet.stream = copy
            out.mux(packet)
    return Path(target)


def cut_off(source, target, fraction=0.6):
    """Cut a file within the first picture whose middle lies behind a fraction of the bytes.

    Within one and never between two: a cut there leaves a whole file, by what the reader sees.
    """
    data = Path(source).read_bytes()
    at = int(len(data) * fraction)
    for payload, _, _ in packets(source):
        middle = data.find(payload) + len(payload) // 2
        if payload in data and middle >= at:
            at = middle
            break
    Path(target).write_bytes(data[:at])
    return Path(target)


def damage(source, target, packet, *, keep=8):
    """Overwrite the picture data of one packet, but its first `keep` bytes."""
    data = bytearray(Path(source).read_bytes())
    payload = packets(source)[packet][0]
    at = data.find(payload)
    assert at > 0 and len(payload) > keep
    for i in range(at + keep, at + len(payload)):
        data[i] ^= 0x5A
    Path(target).write_bytes(data)
    return Path(target)


def hide_vp8_picture(source, target, packet):
    """Mark one picture of a VP8 file as a reference that is never shown."""
    data = bytearray(Path(source).read_bytes())
    at = data.find(packets(source)[packet][0])
    data[at] &= ~0x10
    Path(target).write_bytes(data)
    return Path(target)


def _patch(source, target, box, offset, values):
    data = bytearray(Path(source).read_bytes())
    at = data.find(box) + 4 + offset
    assert at > offset + 4, f"no {box} box"
    data[at : at + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    Path(target).write_bytes(data)
    return Path(target)


def turn(source, target, degrees):
    """Ask players to turn the picture, by any angle."""
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return orient(source, target, (a, b, -b, a))


def orient(source, target, matrix):
    """Ask players to move pixel (x, y) to (a x + c y, b x + d y): tkhd, 16.16 fixed point."""
    a, b, c, d = matrix
    values = np.rint(np.array([a, b, 0, c, d, 0, 0, 0, 0x4000]) * 0x10000)
    data = bytearray(Path(source).read_bytes())
    at = data.find(b"tkhd") + 4 + 40
    data[at : at + 36] = values.astype(">i4").tobytes()
    Path(target).write_bytes(data)
    return Path(target)


def refer(source, target, other):
    """The track's samples lie in the file `other` (an alias in dref, as QuickTime writes them)."""
    data, name = Path(source).read_bytes(), str(other).encode()
    # An alias as mov_read_dref of FFmpeg takes it apart; fields that it passes over are 0.
    alias = bytearray(150)
    alias[4:6], alias[50], alias[51:55] = b"\0\x96", 4, b"film"
    found = data.find(b"dref")
    entry = bytes(alias) + struct.pack(">hh", 2, len(name)) + name + bytes(len(name) % 2)
    entry += struct.pack(">hh", -1, 0)
    box = struct.pack(">I4sI", 12 + len(entry), b"alis", 0) + entry
    dref = struct.pack(">I4sII", 16 + len(box), b"dref", 0, 1) + box
    old = int.from_bytes(data[found - 4 : found], "big")
    out = bytearray(data[: found - 4] + dref + data[found - 4 + old :])
    grown = len(dref) - old
    for name in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = out.rfind(name, 0, found)
        out[at - 4 : at] = (int.from_bytes(out[at - 4 : at], "big") + grown).to_bytes(4, "big")
    Path(target).write_bytes(out)
    return Path(target)


def lie_duration(source, target):
    """The container's header claims 10^6 times the duration (mdhd)."""
    return _patch(source, target, b"mdhd", 16, [0x7FFF0000])


def lie_count(source, target, count):
    """The sample table claims `count` frames of 100 bytes each (stsz)."""
    return _patch(source, target, b"stsz", 4, [100, count])


def lie_times(source, target):
    """All frames claim the same time (stts)."""
    return _patch(source, target, b"stts", 12, [0])


def lie_keys(source, target, second):
    """The second key frame is claimed to be frame number `second`, from 0 (stss)."""
    return _patch(source, target, b"stss", 12, [second + 1])


# What is compared with


def straight(path):
    """Every picture that decodes, in order: the reference of frames (test_rgb: of pixels)."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                pictures += [upright_rgb(f, path) for f in packet.decode()]
            except av.error.FFmpegError:
                pass
    return pictures


def packets_fed(monkeypatch):
    """The numbers of the packets that are given to the decoder from now on."""
    fed, real = [], Pictures._pictures

    def counting(self, packet, number):
        if packet is not None:
            fed.append(number)
        return real(self, packet, number)

    monkeypatch.setattr(Pictures, "_pictures", counting)
    return fed
