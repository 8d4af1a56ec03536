"""The command `stan-infer search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.given import check_utf_8, listed_texts, session_options
from stan_infer.cli.options import (
    AutoRebuild,
    Calibration,
    Csv,
    Device,
    Engine,
    Json,
    LibraryFolder,
    Locked,
    ModelOfLibrary,
    Mug,
    Overlapping,
    Precision,
    Provider,
    Settings,
    Template,
    Text,
    Texts,
    Threads,
    Timeout,
    TopOfMany,
    Weights,
    Without,
)

if TYPE_CHECKING:
    from stan_infer.library.search import SearchResult

_COLUMNS = ["rank", "score", "video", "start_s", "end_s"]


def search(
    context: typer.Context,
    library: LibraryFolder,
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="What is searched for; see --text for weights."),
    ] = None,
    text: Text = None,
    texts: Texts = None,
    without: Without = None,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="VIDEO", help="A video as an example; may be repeated."),
    ] = None,
    like_frame: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[@SECONDS]",
            help="A picture, or the frame of a video at a time, as an example; may be repeated.",
        ),
    ] = None,
    template: Template = None,
    top: TopOfMany = 10,
    overlapping: Overlapping = False,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Only videos whose path ends so; * stands for anything: 'holiday/*.mp4'.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only files changed at this date or later: 2026-11-27."),
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only files changed before this date.")
    ] = None,
    added_since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only contents embedded at this date or later."),
    ] = None,
    added_before: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only contents embedded before this date."),
    ] = None,
    longer: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Only videos that last at least so long."),
    ] = None,
    shorter: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Only videos that last at most so long."),
    ] = None,
    mug: Mug = False,
    csv: Csv = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with frames of the videos found."),
    ] = None,
    model: ModelOfLibrary = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Find the videos of a library that fit texts or examples.

    Several are combined: a score is the mean of the cosines, in which "TEXT::2" counts twice, and
    so does an example. Every row is compared. The library is not changed.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_json, print_lines, print_table, say
    from stan_infer.errors import InputError
    from stan_infer.library.contact_sheet import check_sheet, write_sheet
    from stan_infer.library.library import open_library
    from stan_infer.library.query import weighted
    from stan_infer.system import earlier_result
    from stan_infer.system.atomic import check_file, files_of, new_file
    from stan_infer.system.csv_file import write_csv

    check_utf_8("QUERY", query or [])
    check_utf_8("--not", without or [])
    given: dict[str, list[tuple[str, float]]] = {
        "texts": weighted("--text", [*(query or []), *listed_texts(text, texts)]),
        "without": weighted("--not", without or []),
        "like": weighted("--like", like or []),
        "like_frame": weighted("--like-frame", like_frame or []),
    }
    examples: list[str] = [value for name in ("like", "like_frame") for value, _ in given[name]]
    sources = [library, *map(Path, examples), *(files_of(model) if model else [])]
    sources += [p for p in (texts, calibration) if p is not None]
    keeps_csv = earlier_result.csv([",".join(_COLUMNS)], "stan-infer search")
    if csv is not None and html is not None and csv.resolve() == html.resolve():
        raise InputError(f"{csv} is given as --csv and as --html: give each a file of its own")
    if csv is not None:
        check_file(csv, keeps_csv, sources=sources)
    if html is not None:
        check_sheet(html, top, sources=sources)
    opened = open_library(library)
    found = opened.search(
        given.pop("texts"),
        model=model,
        top=top,
        say=say,
        **given,
        **({"template": template} if template else {}),
        path=path,
        since=since,
        before=before,
        added_since=added_since,
        added_before=added_before,
        longer=longer,
        shorter=shorter,
        overlapping=overlapping,
        mug=mug,
        timeout_s=timeout,
        **session_options(context),
    )
    if json:
        print_json("search", found.to_dict())
    elif found.hits:
        print_table(_rows(found), _shown(found))
    else:
        rows = f"nothing in {found.rows} rows fits" if found.rows else "no row passes the filters"
        print_lines(rows)
    if csv is not None:
        with new_file(csv, keeps_csv, sources=sources) as made:
            cells = [[row[c] for c in _COLUMNS] for row in _rows(found)]
            write_csv(made, _COLUMNS, cells)
    if html is not None:
        with progress_bar("drawing thumbnails", len(found.hits)) as step:
            write_sheet(html, opened, found, sources=sources, timeout_s=timeout, on_hit=step)


def _rows(found: SearchResult) -> list[dict[str, Any]]:
    return [{column: getattr(hit, column) for column in _COLUMNS} for hit in found.hits]


def _shown(found: SearchResult) -> list[str]:
    """The columns of the table: without times where all rows are of whole videos."""
    has_parts = any(h.start_s is not None for h in found.hits)
    return _COLUMNS if has_parts else _COLUMNS[:3]
