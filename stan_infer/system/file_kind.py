"""What a file is, by its first bytes: one table for every message about a file of another kind.

Names say little: servers send web pages, players write playlists, and `git` leaves pointers under
the names of videos and checkpoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from stan_infer.errors import InputError

HEAD = 4096  # bytes that are looked at
Family = Literal["video", "sound", "picture", "weights", "other", "unsure"]


_VIDEO = ""
_CONVERT = "convert it: ffmpeg -i IN OUT.mp4"
_SOUND = "give a file with video"
_PICTURE = "make a video of it or give one: ffmpeg -i IN OUT.mp4"
_LIST = "it only names other files, which are not opened: fetch the video itself"
_PAGE = "a server sent it in place of the file (a log-in, an error?): fetch the file again"
_UNPACK = "unpack it and give the files inside"
_OTHER = "give a video, such as MP4, MKV, WebM, AVI or MPEG"


@dataclass(frozen=True)
class FileKind:
    """A kind of file. what: with its article. help: what to do where a video is expected.

    demuxer: FFmpeg's name of the reader of a container, of the videos that we read. family: of
    "unsure" files FFmpeg decides, and the kind only explains why it refused one.
    """

    family: Family
    what: str
    help: str
    demuxer: str = ""

    @property
    def is_stand_in(self) -> bool:
        """Whether it is a text that came in the place of the file that its name promises."""
        return self.what in ("a web page", "a pointer of git-lfs", "a pointer of git-annex")

    @property
    def is_text(self) -> bool:
        """Whether it may be a text in an encoding that is not known."""
        return self.what in ("a text", "a JSON text", "an XML text", "a file of subtitles")

    def refused(self, path: Path) -> InputError:
        """The error of a file of this kind where a video is expected."""
        if self.help == _CONVERT:
            return InputError(f"{path} is {self.what}, which is not read; {self.help}")
        return InputError(f"{path} is not a video: it is {self.what}; {self.help}")


# The first pattern that fits decides. Patterns are matched at the first byte; "." is any byte.
_TABLE: tuple[tuple[bytes, Family, str, str, str], ...] = (
    # ISO files: the brand says what is inside
    (rb"\0...ftyp(?:avif|heic|heix|heim|heis|mif1)", "picture", "an AVIF or HEIC picture",
     _PICTURE, ""),
    (rb"\0...ftyp(?:jp2 |jpx |jpm )|\0\0\0\x0cj(?:P  |XL )\r\n\x87\n|\xff\n|\xffO\xffQ", "picture",
     "a JPEG 2000 or JPEG XL picture", _PICTURE, ""),
    (rb"\0...ftyp(?:M4A |M4B |M4P )", "sound", "an M4A sound file", _SOUND, ""),
    (rb"\0...ftyp|\0...(?:moov|mdat|wide|free|skip|pnot)", "video", "an MP4 or MOV video", _VIDEO,
     "mov"),
    # Videos that are read
    (rb"\x1aE\xdf\xa3", "video", "a Matroska or WebM video", _VIDEO, "matroska"),
    (rb"RIFF....AVI[ X\x19]", "video", "an AVI video", _VIDEO, "avi"),
    (rb"FLV\x01", "video", "an FLV video", _VIDEO, "flv"),
    (rb"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel", "video", "a WMV or ASF video", _VIDEO, "asf"),
    (rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G", "video", "an MPEG transport stream", _VIDEO,
     "mpegts"),
    (rb"\0\0\x01\xba", "video", "an MPEG program stream", _VIDEO, "mpeg"),
    (rb"\0\0\x01\xb3", "video", "an MPEG video stream", _VIDEO, "mpegvideo"),
    (rb"OggS(?=.{24,200}(?:\x80theora|fishead|BBCD|OVP80))", "video", "an Ogg video", _VIDEO,
     "ogg"),
    (rb"GIF8[79]a", "video", "a GIF", _VIDEO, "gif"),
    (rb"DKIF\0\0", "video", "an IVF video", _VIDEO, "ivf"),
    (rb"\x06\x0e\+4\x02\x05\x01\x01\r\x01\x02", "video", "an MXF video", _VIDEO, "mxf"),
    (rb"nut/multimedia container\0", "video", "a NUT video", _VIDEO, "nut"),
    # Videos that are not read
    (rb"\.RMF|\.ra\xfd", "other", "a RealMedia file", _CONVERT, ""),
    (rb"\x1f\x07\0[?\xbf]", "other", "a raw DV video", _CONVERT, ""),
    (rb"YUV4MPEG2 ", "other", "a raw YUV4MPEG video", _CONVERT, ""),
    (rb"RIFF....CDXA", "unsure", "a track of a Video CD", _CONVERT, ""),
    (rb"[FCZ]WS[\x01-\x40].{4}", "other", "a Flash program", _OTHER, ""),
    (rb"\xb7\xd8\0 7I\xda\x11", "other", "a WTV recording", _CONVERT, ""),
    (rb"BIK[a-k]|KB2[a-k]|SMK[24]", "other", "a video of a game (Bink or Smacker)", _CONVERT, ""),
    # Pictures
    (rb"\x89PNG\r\n", "picture", "a PNG picture", _PICTURE, ""),
    (rb"\xff\xd8\xff", "picture", "a JPEG picture", _PICTURE, ""),
    (rb"RIFF....WEBP", "picture", "a WebP picture", _PICTURE, ""),
    (rb"II\*\0|MM\0\*", "picture", "a TIFF picture", _PICTURE, ""),
    (rb"BM.{4}\0\0\0\0", "picture", "a BMP picture", _PICTURE, ""),
    (rb"8BPS\0|v/1\x01|\0\0\x01\0[\x01-\x20]\0", "picture", "a picture", _PICTURE, ""),
    # Sound
    (rb"ID3[\x02-\x04]|\xff[\xe3\xf3\xfb\xf2\xfa]", "sound", "an MP3 sound file", _SOUND, ""),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "sound", "an AAC sound file", _SOUND, ""),
    (rb"fLaC|RIFF....WAVE|RF64....WAVE|OggS|FORM....AIF|caff\0|#!AMR|MThd|wvpk|MAC |\x0bw", "sound",
     "a sound file", _SOUND, ""),
    # Weights and programs
    (rb"PK\x03\x04.{26}[^/]{1,100}/(?:data\.pkl|\.format_version|\.data/)", "weights",
     "a PyTorch file", _OTHER, ""),
    (rb".{3}\0{5}\{\"", "weights", "a safetensors file", _OTHER, ""),
    (rb"\x80[\x02-\x05](?:\}|\]|c|\x8a|\x95)", "weights", "a pickle or an old PyTorch file", _OTHER,
     ""),
    (rb"PK\x03\x04.{26}[^/]{1,100}\.npy|\x93NUMPY", "other", "a NumPy file", _OTHER, ""),
    (rb"\x89HDF\r\n|GGUF", "other", "a file of numbers (HDF5 or GGUF)", _OTHER, ""),
    (rb"\x7fELF|MZ.{58}|#! ?/", "other", "a program", _OTHER, ""),
    # Archives and documents
    (rb"PK\x03\x04.{26}(?:\[Content_Types\]|_rels/|docProps/|xl/|word/|mimetypeapplication/vnd\.oasis)",
     "other", "a document of an office program", _OTHER, ""),
    (rb"PK\x03\x04|PK\x05\x06|\x1f\x8b\x08|BZh[1-9]|\xfd7zXZ\0|7z\xbc\xaf|Rar!\x1a|\x28\xb5\x2f\xfd"
     rb"|.{257}ustar", "other", "an archive", _UNPACK, ""),
    (rb"%PDF-", "other", "a PDF", _OTHER, ""),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1|\{\\rtf", "other", "an office document", _OTHER, ""),
    # Text
    (rb"version https://git-lfs\.github\.com/spec", "other", "a pointer of git-lfs",
     "the file itself was not fetched: run git lfs pull", ""),
    (rb"(?:\.\./)*/?(?:annex|\.git/annex)/objects/", "other", "a pointer of git-annex",
     "the file itself was not fetched: run git annex get", ""),
    (rb"(?i)\s*(?:#EXTM3U|ffconcat|\[playlist\]|\[Reference\]|\[InternetShortcut\]|<asx|<smil"
     rb"|v=0\r?\no=)|\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:MPD|SmoothStreamingMedia)\b",
     "other", "a playlist", _LIST, ""),
    (rb"\s*https?://\S+\s", "other", "a list of addresses", _LIST, ""),
    (rb"(?i)\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body|title|script)\b", "other",
     "a web page", _PAGE, ""),
    (rb"(?i)\s*<\?xml.{0,200}?<svg\b|\s*<svg\b", "picture", "an SVG drawing", _OTHER, ""),
    (rb"\s*<\?xml\b|\s*<Error>", "other", "an XML text", _PAGE, ""),
    (rb"\s*[\[{]\s*[\"{\[\]}]", "other", "a JSON text", _PAGE, ""),
    (rb"WEBVTT|\[Script Info\]|# VobSub index|\s*1\s*\r?\n\d\d:\d\d:\d\d", "other",
     "a file of subtitles", _OTHER, ""),
)  # fmt: skip
_COMPILED = tuple(
    (re.compile(pattern, re.DOTALL), FileKind(family, what, help, demuxer))
    for pattern, family, what, help, demuxer in _TABLE
)
_TEXT = FileKind("other", "a text", _OTHER)
_ZEROS = FileKind("unsure", "a file that begins with zeros only",
                  "its download did not finish: fetch it again")  # fmt: skip
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\f\r")) + b"\x7f"


def kind_of(head: bytes) -> FileKind | None:
    """Return the kind of a file that begins with `head` (HEAD bytes, or all), None if unknown."""
    start = head.removeprefix(b"\xef\xbb\xbf")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # Windows' text in UTF-16
        start = head.decode("utf-16", "ignore").encode()
    for pattern, kind in _COMPILED:
        if pattern.match(start):
            return kind
    if len(head) >= 512 and not head.strip(b"\0"):
        return _ZEROS
    is_text = bool(start) and not start.translate(None, bytes(set(range(256)) - set(_CONTROLS)))
    return _TEXT if is_text else None


def read_kind(file: BinaryIO) -> FileKind | None:
    """Return the kind of an open file, which is left at its start; None if unknown."""
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    return kind_of(head)
