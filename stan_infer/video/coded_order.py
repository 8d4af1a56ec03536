"""The order of presentation from the coded pictures, for files whose times do not tell it.

Sources: ISO/IEC 14496-2 (MPEG-4 part 2), 11172-2 and 13818-2 (MPEG-1, MPEG-2), 14496-10 (H.264).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

UNKNOWN = ord("?")
_PICTURE = re.compile(rb"\x00\x00\x01\x00(..)", re.DOTALL)
_EXTENSION = re.compile(rb"\x00\x00\x01\xb5[\x80-\x8f].(.)", re.DOTALL)  # of a picture's coding
# These show every packet as one picture, in the order of decoding. Not every codec without B
# pictures does: WMV2 has packets that show nothing.
_AS_STORED = {"cinepak", "ffv1", "flv", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "vp8", "wmv1", "zmbv"}
_NOT_CODED = 19  # bytes; an MPEG-4 packet of at most so many may hold a picture that is left out


def places(
    codec: str, *, intra: bool, kinds: bytes, shown: NDArray[np.bool_]
) -> NDArray[np.int64] | None:
    """Return the place of every packet in the order of presentation, int64 [packets].

    None if it cannot be told surely. intra: the codec has only pictures that stand alone.
    kinds: what KINDS[codec] returned for every packet. shown: bool [packets].
    """
    count = len(shown)
    if intra or codec in _AS_STORED:
        return np.arange(count, dtype=np.int64)
    if codec not in KINDS or UNKNOWN in kinds or not shown.all():
        return None
    # A B picture is shown at once, another when the next that is not B has been decoded.
    order: list[int] = []
    held: list[int] = []
    for number, kind in enumerate(kinds):
        if kind != ord("B"):
            order += held
            held = [number]
        else:
            order.append(number)
    result = np.empty(count, np.int64)
    result[order + held] = np.arange(count)
    return result


def _mpeg4(data: bytes) -> int:
    """Return the kind (I, P, B, S) of the one picture in a packet, or UNKNOWN."""
    at = data.find(b"\x00\x00\x01\xb6")
    # Two pictures in a packet: "packed B frames", which players unpack in ways of their own.
    if at < 0 or at + 4 >= len(data) or data.find(b"\x00\x00\x01\xb6", at + 4) >= 0:
        return UNKNOWN
    return b"IPBS"[data[at + 4] >> 6] if len(data) > _NOT_CODED else UNKNOWN


def _mpeg12(data: bytes) -> int:
    """Return the kind (I, P, B) of the one picture in a packet, or UNKNOWN."""
    pictures = _PICTURE.findall(data)
    structures = {extension[0] & 3 for extension in _EXTENSION.findall(data)}
    # A frame (or MPEG-1, without extensions), or the two fields of one frame with one number.
    whole = len(pictures) == 1 and structures <= {3}
    if len(pictures) == 2 and structures == {1, 2}:
        whole = pictures[0][0] == pictures[1][0] and (pictures[0][1] ^ pictures[1][1]) < 64
    return b"?IPB????"[pictures[0][1] >> 3 & 7] if whole else UNKNOWN


def begins_anew(codec: str, data: bytes, extradata: bytes | None) -> bool:
    """Whether a key packet is sure to give a picture, on which all later ones build.

    In H.264 a packet may be marked as key whose picture is complete only after some others.
    """
    if codec != "h264":
        return True
    if not extradata or extradata[0] != 1:
        return bool(re.search(rb"\x00\x00\x01[\x05\x25\x45\x65]", data))
    width, at = (extradata[4] & 3) + 1, 0  # each unit follows its length
    while at + width < len(data):
        if data[at + width] & 31 == 5:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False


KINDS: dict[str, Callable[[bytes], int]] = {
    "mpeg4": _mpeg4,
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
}
