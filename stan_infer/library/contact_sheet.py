"""The page of `stan-infer search --html`: what was found, with the frames that the model saw, and
the scores over time of videos with windows.

One file without scripts that fetches nothing. Paths come from a library, which may be a stranger's:
they are shown as text and are no links, and only files that are still what was embedded are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, StanError
from stan_infer.library.over_time import charts, scores_over_time
from stan_infer.library.query import Term
from stan_infer.library.row_reader import RowReader
from stan_infer.library.search import Hit, Rows, SearchResult
from stan_infer.library.searched_model import frames_and_decoder
from stan_infer.library.thumbnails import SIDE, check_thumbnails, data_url
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_file, new_file
from stan_infer.system.html_page import escaped, html_charts, html_page
from stan_infer.system.packages import is_installed, require
from stan_infer.video.clip import Clip
from stan_infer.video.spec import ClipSpec

MAX_HITS, MAX_FRAMES = 200, 16  # on a page, of a hit: 96 pixels wide, some 3 kB each
_LONGEST = 300  # characters of a path or text
_MAKER = "stan-infer search"
_KEEP = earlier_result.page(_MAKER, f"{_MAKER} --html")
STYLE = """
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
    if not is_installed("matplotlib"):  # it is imported where a video has windows
        require("matplotlib", "drawing plots", "report")
    check_file(path, _KEEP, sources=sources)


def write_sheet(
    path: Path,
    library: Rows,
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
    with RowReader(library.path, spec, timeout_s) as reader:
        cards = []
        for hit in found.hits:
            cards.append(_card(hit, _frames(reader, hit)))
            on_hit()
    parts = [
        "<h1>Search</h1>",
        f"<p>{'; '.join(map(_asked, found.asked))}</p>",
        f"<p class=soft>{len(cards)} of {found.rows} rows of {_cut(found.library)}; the score is "
        "a mean over what was asked for. Shown are frames that the model looked at.</p>",
        f"<div class=cards>{''.join(cards)}</div>" if cards else "<p>Nothing fits.</p>",
        *_over_time(library, found),
    ]
    with new_file(path, _KEEP, sources=sources) as made:
        title = f"Search: {', '.join(t.value for t in found.asked)}"[:_LONGEST]
        made.write_text(html_page(title, parts, STYLE, maker=_MAKER), encoding="utf-8")


def _asked(term: Term) -> str:
    kinds = {"text": "", "without": "without ", "like": "like ", "like_frame": "like the frame "}
    kinds["like_row"] = "like row "
    weight = "" if term.weight == 1 else f" (weight {term.weight:g})"
    return f"{kinds[term.kind]}<b>{_cut(term.value)}</b>{weight}"


def _card(hit: Hit, frames: str) -> str:
    name = Path(hit.video).name
    time = "" if hit.start_s is None else f"<p>{hit.start_s:.2f} to {hit.end_s:.2f} s</p>"
    copies = f"<p class=soft>and {len(hit.copies)} copies</p>" if hit.copies else ""
    score = f"<span class=whole>score {hit.score:.4f}</span>"
    return (
        f"<div class=card><b>{hit.rank}. {_cut(name)}</b> {score}{time}{frames}"
        f"<p class=soft>{_cut(hit.video)}</p>{copies}</div>"
    )


def _over_time(library: Rows, found: SearchResult) -> list[str]:
    """The scores of the videos with windows that were found, best first."""
    curves = [*scores_over_time(library, found)]
    if not curves:
        return []
    names = [_cut(Path(c.hits[0].video).name) for c in curves]
    mug = " It is the cosine; the rows above have the score of the Mug head." * found.mug
    return [
        "<h2>Over time</h2>",
        "<p class=soft>The score of every window, drawn at its middle, with one scale for all. The "
        f"rows above are shaded, with their ranks.{mug}</p>",
        html_charts([*charts(curves, "score")], names),
    ]


def _cut(text: str | Path) -> str:
    text = str(text)
    half = _LONGEST // 2
    return escaped(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


def _frames(reader: RowReader, hit: Hit) -> str:
    """The frames of a hit, or why there are none."""
    try:
        return _pictures(reader.read(Path(hit.video), hit.start_s, hit.end_s))
    except StanError as e:
        return f"<p class=missing>{escaped(str(e)[:_LONGEST])}</p>"


def _pictures(clip: Clip) -> str:
    images: Sequence[str] = [
        f'<img src="{data_url(pixels)}" width=96 height=96 alt="frame {number}" '
        f'title="frame {number} of {clip.total_frames}">'
        for number, pixels in shown_frames(clip).items()
    ]
    return f"<div class=frames>{''.join(images)}</div>"


def shown_frames(clip: Clip) -> dict[int, NDArray[np.uint8]]:
    """At most MAX_FRAMES of a clip, evenly spread, each once: number -> uint8 [1, S, S, 3]."""
    count = min(MAX_FRAMES, len(clip.pixels))
    places = np.linspace(0, len(clip.pixels) - 1, count).round().astype(int)
    return {int(clip.indices[i]): clip.pixels[i : i + 1] for i in places.tolist()}
