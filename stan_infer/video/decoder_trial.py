"""Decode a tiny clip whose pictures are known, in the process that decodes users' videos.

A decoder that can be imported and has the codec may still fail to read files or give wrong pixels.
"""

from __future__ import annotations

import base64
import re

import numpy as np

from stan_infer.errors import InputError
from stan_infer.system.temporary import temporary_folder
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec

_NAME = "clip.mp4"
SIDE = 64  # pixels; decord 0.6 cannot read frames whose width is not a multiple of 64
TOTAL = 8  # frames of the clip
FRAMES = 4  # frames that are read: numbers 0, 2, 4 and 5, from both groups of pictures
# Levels of 0 to 255. Encoding changed pixels by 3 at most; the next frame differs by 24, and a
# wrong colour matrix (BT.709 for BT.601) gives differences of more than 10.
TOLERANCE = 8
_MARGIN = 4  # pixels left out at the borders of the quarters, where colour is blurred
# An MP4 of 1.8 kB: `picture(0)` to `picture(7)` through PyAV's libx264 as yuv420p at 10 frames/s,
# with crf=10, preset=veryslow, g=4, bf=2, x264-params scenecut=0:b-adapt=0 (two groups of pictures
# I P B B), then without x264's own text: bit stream filter filter_units=remove_types=6.
CLIP = """
AAAAIGZ0eXBpc29tAAACAGlzb21pc28yYXZjMW1wNDEAAAAIZnJlZQAAA3VtZGF0AAAAhWWIgQAK//7ugr4FLxbXwksorIRDNz
4uomB6quGmxFOQ/Z7JTV8gr3aap7rlrLnKIjuyPPzNOMt/Ga6rdf7Mm4LPO1gPRcLVbiJqGH1a4sTuVez7DvEgVlsCXA6eBkZ+
NTyyMoWNxACObDKo8SSoft1q1vnrcpETsyMizNC1pioqe70YurkAAACrQZoI2ECIGoBDQPwH4BAAIBCvq9Br/NEn0atIigk+qA
KTMCly+reY4zTla9LU4zNvzqkcs4X9M1q6cxyADZj+ASjbpYeijo36BgAhquRJOlKVK7/DivKVKUKdZ2OahiS6tJih7ZNPY7Ct
2dOWZINfSVSuQG1JLh/5Fm37qs7quco+1LOyRdMUT/49NlFr/zPu/rxAD6PMcesVn4CuCWYIIS5tVIINeML7heHAAAAAT0GeEE
4hX/7/lH4NjM9W+iuAw9mAJqL+32Sny7Se8fpmXyQYaejYaOGigiz4LyMMZagrvUeUbx8MMwwZEFxcejyfub6zohL+pzeK6m87
wMEAAAAjAZ4YmpCvNb3Om/4fj6tliBdJKm5jD6I+Jj9RHHmFPuf7EhgAAACHZYiAgAK//vWy3zLKHBGKJEbQ/Gox3JlG/MFlD6
2b0wTAY1+MBNyV7ISmOnvlmuI8M5rlobVcrDzUIKXthd6yDXGxhvlAXP6QMh9OCQfQgtA//bS7MavIMIDETXxH3ue9Z9w37USX
gZaC1P3dqN/33d3CIgCSJLJktK4YGdQqYeqRD9TMvXnxAAAAnEGaCNjHgJYB/wH8A/QEBQr/5Z/wzHjZZU+BTM8Vjmu10rUVQ6
PF3j/AMOiQGuxkZX8GR7j+tlgAysJ1BTY+YXh/ZOyS85JRt5nKWK0oHIxQ5x0ZU63MPPUNOI4pXDZ/kgj5lZaOLt4LyArX3Ffi
DTpmSCmmdhVQn/0fZwq5pIsDKWLzeMZXkpTn3CKK2E71ISNlwdRgFSeIdmiYcQAAAE9BnhBOIV/+/3VBYVYmjX4/AGb6atepmo
7kVo73dKCBI/SnTE5Sy4WbhiulLwMkxH7ZtrGbbzGD1QowgdvMGiNZGepVj+WfUi0IL8kXDN95AAAAOQGeGJqQr/7/lPhD6Ntw
zPVvop8rvT7dq/8Px9WyxAupBa2SyEh1cwhWBjP/rwwg0HPEoaTn1VPqwQAAA35tb292AAAAbG12aGQAAAAAAAAAAAAAAAAAAC
gAAAAgAAABAAABAAAAAAAAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAACAAACqXRyYWsAAABcdGtoZAAAAAMAAAAAAAAAAAAAAAEAAAAAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAQAAAA
AAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAEAAAAAAQAAAAEAAAAAAACRlZHRzAAAAHGVsc3QAAAAAAAAAAQAAIAAAAAgAAAEA
AAAAAiFtZGlhAAAAIG1kaGQAAAAAAAAAAAAAAAAAACgAAAAgAFXEAAAAAAAtaGRscgAAAAAAAAAAdmlkZQAAAAAAAAAAAAAAAF
ZpZGVvSGFuZGxlcgAAAAHMbWluZgAAABR2bWhkAAAAAQAAAAAAAAAAAAAAJGRpbmYAAAAcZHJlZgAAAAAAAAABAAAADHVybCAA
AAABAAABjHN0YmwAAACwc3RzZAAAAAAAAAABAAAAoGF2YzEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAQABAAEgAAABIAAAAAA
AAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAY//8AAAA2YXZjQwFkAAr/4QAYZ2QACqx2ERCaEAAAAwAQAAAD
AUDxIlhGAQAHaOhDgQyyLP34+AAAAAAUYnRydAAAAAAAADyMAAAiQgAAABhzdHRzAAAAAAAAAAEAAAAIAAAEAAAAABhzdHNzAA
AAAAAAAAIAAAABAAAABQAAAEBjdHRzAAAAAAAAAAYAAAABAAAIAAAAAAEAABAAAAAAAgAABAAAAAABAAAIAAAAAAEAABAAAAAA
AgAABAAAAAAcc3RzYwAAAAAAAAABAAAAAQAAAAgAAAABAAAANHN0c3oAAAAAAAAAAAAAAAgAAACJAAAArwAAAFMAAAAnAAAAiw
AAAKAAAABTAAAAPQAAABRzdGNvAAAAAAAAAAEAAAAwAAAAYXVkdGEAAABZbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAbWRpcmFw
cGwAAAAAAAAAAAAAAAAsaWxzdAAAACSpdG9vAAAAHGRhdGEAAAABAAAAAExhdmY2My4xLjEwMg==
"""


def picture(i: int) -> np.ndarray:
    """Draw frame i of the clip, uint8 [64, 64, 3], RGB: four quarters whose colours depend on i."""
    half, up, down = SIDE // 2, 40 + 24 * i, 208 - 24 * i
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:half, :half], image[:half, half:] = (up, down, 40), (40, up, down)
    image[half:, :half], image[half:, half:] = (down, 40, up), (up, up, up)
    return image


def decode_own_clip(decoder: str) -> None:
    """Read the clip with "pyav" or "decord" and compare frames and pixels with what was drawn.

    Raises RuntimeError where it cannot be read or they differ, and whatever else reading raises.
    """
    spec = ClipSpec(frames=FRAMES, short_side=SIDE, crop=SIDE, decoder=decoder)
    with temporary_folder("a clip that is decoded as a trial") as folder, DecodeWorker() as worker:
        path = folder / _NAME
        path.write_bytes(base64.b64decode(CLIP))
        try:
            clip = worker.read(path, spec)
        except InputError as e:  # its message blames the file, but this file is good
            reason = _reason(str(e))
            raise RuntimeError(f"{decoder} does not decode doctor's own clip: {reason}") from e
    if clip.total_frames != TOTAL:
        raise RuntimeError(f"{decoder} finds {clip.total_frames} frames in a clip of {TOTAL}")
    for i, found in zip(clip.indices.tolist(), clip.pixels, strict=True):
        off = _largest_difference(found, picture(i))
        if off > TOLERANCE:
            raise RuntimeError(
                f"{decoder} decodes wrong pixels: frame {i} of a known clip is off by {off} of 255 "
                f"(allowed: {TOLERANCE})"
            )


def _reason(message: str) -> str:
    """Return the reason in a message on a user's video, without the file's name and the advice."""
    reason = message.rpartition("; ")[0] or message
    return re.sub(rf"^.*?{re.escape(_NAME)}(?: is not a video[^:]*)?:? *", "", reason)


def _largest_difference(found: np.ndarray, wanted: np.ndarray) -> int:
    half = SIDE // 2
    place = np.arange(SIDE) % half
    inside = (place >= _MARGIN) & (place < half - _MARGIN)
    difference = np.abs(found.astype(int) - wanted.astype(int))
    return int(difference[np.ix_(inside, inside)].max())
