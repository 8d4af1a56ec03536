"""The page of `stan-infer search --html`: what was found, with the frames that the model saw.

One file without scripts that fetches nothing. Paths come from a library, which may be a stranger's:
they are shown as text and are no links, and only a file that is still as it was embedded is read,
in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from stan_infer.errors import InputError, StanError
from stan_infer.library.database import connect, errors_named
from stan_infer.library.files import hashed, seen
from stan_infer.library.query import Term
from stan_infer.library.search import Hit, SearchResult
from stan_infer.library.searched_model import Made, frames_and_decoder
from stan_infer.library.thumbnails import SIDE, check_thumbnails, data_url
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_file, new_file
from stan_infer.system.html_page import escaped, html_page
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

MAX_HITS, MAX_FRAMES = 200, 16  # on a page, of a hit: 96 pixels wide, some 3 kB each
_LONGEST = 300  # characters of a path or text
_MAKER = "stan-infer search"
_KEEP = earlier_result.page(_MAKER, f"{_MAKER} --html")
_STYLE = """
.frames { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px; margin-top: .5rem;
  max-width: 24.4rem; }
.frames img { width: 100%; height: auto; display: block; background: var(--line); }
.missing { border: 1px dashed var(--soft); padding: .5rem; color: var(--soft); }
"""


def check_sheet(path: Path, top: int, *, sources: Sources = ()) -> None:
    """Refuse a page that cannot be written, before the work; see system.atomic.check_file.

    Raises InputError also for more than MAX_HITS, MissingError where pictures cannot be made.
    """
    if top > MAX_HITS:
        raise InputError(f"--html shows at most {MAX_HITS} rows: give a smaller --top than {top}")
    check_thumbnails()
    check_file(path, _KEEP, sources=sources)


def write_sheet(
    path: Path,
    library: Made,
    found: SearchResult,
    *,
    sources: Sources = (),
    timeout_s: float = 60.0,
    on_hit: Callable[[], None] = lambda: None,
) -> None:
    """Read the frames of every hit and write the page; a video that is not there is shown so.

    library: that was searched. Raises what check_sheet raises.
    """
    check_sheet(path, len(found.hits), sources=sources)
    count, decoder = frames_and_decoder(library)
    spec = ClipSpec(frames=count, short_side=SIDE, crop=SIDE, decoder=decoder)
    with _Frames(library.path, spec, timeout_s) as frames:
        cards = []
        for hit in found.hits:
            cards.append(_card(hit, frames.of(hit)))
            on_hit()
    parts = [
        "<h1>Search</h1>",
        f"<p>{'; '.join(map(_asked, found.asked))}</p>",
        f"<p class=soft>{len(cards)} of {found.rows} rows of {_cut(found.library)}; the score is "
        "a mean of cosines. Shown are frames that the model looked at.</p>",
        f"<div class=cards>{''.join(cards)}</div>" if cards else "<p>Nothing fits.</p>",
    ]
    with new_file(path, _KEEP, sources=sources) as made:
        title = f"Search: {', '.join(t.value for t in found.asked)}"[:_LONGEST]
        made.write_text(html_page(title, parts, _STYLE, maker=_MAKER), encoding="utf-8")


def _asked(term: Term) -> str:
    kinds = {"text": "", "without": "without ", "like": "like ", "like_frame": "like the frame "}
    weight = "" if term.weight == 1 else f" (weight {term.weight:g})"
    return f"{kinds[term.kind]}<b>{_cut(term.value)}</b>{weight}"


def _card(hit: Hit, frames: str) -> str:
    name = Path(hit.video).name
    time = "" if hit.start_s is None else f"<p>{hit.start_s:.2f} to {hit.end_s:.2f} s</p>"
    copies = f"<p class=soft>and {len(hit.copies)} copies</p>" if hit.copies else ""
    return (
        f"<div class=card><b>{hit.rank}. {_cut(name)}</b> {hit.score:.4f}{time}{frames}"
        f"<p class=soft>{_cut(hit.video)}</p>{copies}</div>"
    )


def _cut(text: str | Path) -> str:
    text = str(text)
    half = _LONGEST // 2
    return escaped(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


class _Frames:
    """The frames of hits as HTML, read by one process."""

    def __init__(self, library: Path, spec: ClipSpec, timeout_s: float) -> None:
        self._library, self._spec, self._timeout_s = library, spec, timeout_s
        self._worker = DecodeWorker()

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *raised: object) -> None:
        self._worker.close()

    def of(self, hit: Hit) -> str:
        """The frames, or why there are none."""
        path = Path(hit.video)
        reason = self._changed(path)
        if reason is None:
            try:
                return _pictures(self._clip(path, hit))
            except StanError as e:
                reason = f"It cannot be read: {str(e)[:_LONGEST]}"
        return f"<p class=missing>{escaped(reason)}</p>"

    def _changed(self, path: Path) -> str | None:
        """Why a file is not what was embedded; None: it is, by size and time or by its hash."""
        now = seen(path)
        if now is None:
            return "The file is not there any more."
        asked = "SELECT size, mtime_ns, sha256 FROM files WHERE path = ?"
        with errors_named(self._library), closing(connect(self._library)) as db:
            known = db.execute(asked, (bytes(path),)).fetchone()
        if known is not None and now == tuple(known[:2]):
            return None
        if known is not None and now[0] == known[0]:
            with ThreadPoolExecutor(1) as thread:
                ((_, file),) = hashed([path], thread)
            if file.sha256 is not None and file.sha256 == known[2]:
                return None
        return "The file has changed since it was embedded."

    def _clip(self, path: Path, hit: Hit) -> Clip:
        if hit.start_s is None or hit.end_s is None:
            return self._worker.read(path, self._spec, timeout_s=self._timeout_s)
        windows = Windows(start=hit.start_s, end=hit.end_s)
        plan = self._worker.plan(path, windows, timeout_s=self._timeout_s)
        total, parts = plan.total_frames, plan.windows
        (clip,) = self._worker.read_windows(
            path, self._spec, total, parts, timeout_s=self._timeout_s
        )
        if isinstance(clip, InputError):
            raise clip
        return clip


def _pictures(clip: Clip) -> str:
    """At most MAX_FRAMES of a clip, evenly spread, each once."""
    count = min(MAX_FRAMES, len(clip.pixels))
    places = np.linspace(0, len(clip.pixels) - 1, count).round().astype(int)
    shown = {int(clip.indices[i]): clip.pixels[i : i + 1] for i in places.tolist()}
    images: Sequence[str] = [
        f'<img src="{data_url(pixels)}" width=96 height=96 alt="frame {number}" '
        f'title="frame {number} of {clip.total_frames}">'
        for number, pixels in shown.items()
    ]
    return f"<div class=frames>{''.join(images)}</div>"
