"""What a source of frames is: a file, a camera of this machine, or an address on a network."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from stan_infer.errors import InputError, nearest
from stan_infer.system.outside_file import odd_name
from stan_infer.video.clip import regular_file

# FFmpeg's names of the protocols that an address may lead to. A file is in none of them, so that no
# server can make this machine open one. Playlists (HLS, DASH) are no format that is read: they name
# other addresses than the user did.
PROTOCOLS = {
    "http": "http,https,httpproxy,tcp,tls",
    "https": "http,https,httpproxy,tcp,tls",
    "rtsp": "rtp,srtp,udp,tcp,tls",
    "rtsps": "rtp,srtp,udp,tcp,tls",
    "rtmp": "rtmp,rtmps,tcp,tls",
    "rtmps": "rtmp,rtmps,tcp,tls",
    "rtp": "rtp,srtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt",
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_PLAYLISTS = (".m3u8", ".m3u", ".mpd")
_OF_CONTAINER = ("http", "https")  # of which an address may be that of a recording


@dataclass(frozen=True)
class Source:
    """One source. name: as FFmpeg opens it; shown: without what may be secret, for people."""

    kind: Literal["file", "device", "stream"]
    name: str
    shown: str

    @property
    def scheme(self) -> str:
        """Of an address, as in "rtsp"; "" otherwise."""
        return self.name.partition("://")[0].lower() if self.kind == "stream" else ""

    @property
    def may_be_recorded(self) -> bool:
        """Whether it may be a whole recording, which is read to its end, and not live."""
        return self.kind == "file" or self.scheme in _OF_CONTAINER


def parse_source(text: str) -> Source:
    """What a user names: a file, /dev/video0, or an address such as rtsp://host/stream.

    Raises InputError for anything else, and for a file or device that is not there.
    """
    if match := _SCHEME.match(text):
        return _stream(text, match[1].lower())
    path = Path(text)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as e:
        if str(path).startswith("/dev/video"):
            raise InputError(
                f"no such camera: {text} ({getattr(e, 'strerror', e)}); `ls /dev/video*` lists "
                "those that are there"
            ) from e
        raise InputError(
            odd_name(path) or f"no such video file, camera or address: {text}; check the spelling"
        ) from e
    if stat.S_ISDIR(mode):
        raise InputError(f"{text} is a folder; give one video, a camera or an address")
    if stat.S_ISCHR(mode):
        if not re.search(r"/video\d+$", os.path.realpath(path)):
            raise InputError(f"{text} is a device, but no camera such as /dev/video0")
        return Source("device", os.path.realpath(path), text)
    regular_file(path)
    return Source("file", os.fspath(path.absolute()), text)


def _stream(text: str, scheme: str) -> Source:
    if scheme == "file":
        raise InputError(odd_name(text))
    if scheme not in PROTOCOLS:
        known = list(PROTOCOLS)
        raise InputError(
            f"address {shown_address(text)}: {scheme} is no protocol that is watched"
            f"{nearest(scheme, known)} ({', '.join(known)})"
        )
    try:
        parts = urlsplit(text)
        has_place = bool(parts.hostname) or (scheme in ("udp", "rtp") and bool(parts.port))
    except ValueError as e:
        raise InputError(f"address {shown_address(text)} cannot be read: {e}") from e
    if not has_place or re.search(r"[\s\x00-\x1f]", text):
        raise InputError(
            f"address {shown_address(text)} names no host, as in {scheme}://192.168.0.7/stream"
        )
    if parts.path.lower().endswith(_PLAYLISTS):
        raise InputError(
            f"{shown_address(text)} is a playlist, which names other addresses: those are not "
            "followed. Give the address of the stream itself, or let ffmpeg follow it: ffmpeg -i "
            "PLAYLIST -c copy -f mpegts udp://127.0.0.1:5000, and watch udp://127.0.0.1:5000"
        )
    return Source("stream", text, shown_address(text))


def shown_address(text: str) -> str:
    """An address without user, password and query, which are secrets of cameras."""
    bare = re.sub(r"^([^/]*//)[^/?#]*@", r"\1", text)
    return re.sub(r"[?#].*$", "", bare, flags=re.DOTALL)


def without_secrets(message: str, source: Source) -> str:
    """A message of a library, in which the address stands without its secrets."""
    message = message.replace(source.name, source.shown)
    parts = urlsplit(source.name) if source.kind == "stream" else None
    for secret in (parts.password, parts.query) if parts else ():
        if secret:
            message = message.replace(secret, "***")
    return message
