"""The command `stan-infer watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.given import open_for, read_texts
from stan_infer.cli.options import (
    AutoRebuild,
    Calibration,
    CheckpointOrFolder,
    Device,
    Engine,
    Frames,
    Json,
    Labels,
    Locked,
    Parts,
    Precision,
    Provider,
    Settings,
    SplitWords,
    Template,
    Text,
    Texts,
    Threads,
    Weights,
    Without,
)


def watch(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video, a camera (/dev/video0), or an address: rtsp, rtmp, srt, http(s), udp, "
            "tcp or rtp.",
        ),
    ],
    text: Text = None,
    texts: Texts = None,
    labels: Labels = None,
    split_words: SplitWords = False,
    without: Without = None,
    template: Template = None,
    windows: Parts = None,
    measure: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What --on and --off are about: probability, a text's share among all texts, or "
            "score, the model's own (cosine or Mug score).",
        ),
    ] = "probability",
    on: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="An event begins with a window of at least this (default: 0.6; of scores none).",
        ),
    ] = None,
    off: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="It goes on while windows have at least this (default: 0.4; of scores none).",
        ),
    ] = None,
    hold: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Events that last less are left out.")
    ] = 0.0,
    reconnect: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Tries in a row to reach a camera or address that was lost (default: no end).",
        ),
    ] = None,
    stall: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, help="A source from which so long nothing comes is lost."
        ),
    ] = 10.0,
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="Read a file at its own speed, as if it were a camera."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE.jsonl", help="Also append the events to this file."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also draw values over time: .png, .svg, or .html for a page."
        ),
    ] = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: Frames = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Watch a video, a camera or a stream for texts.

    Windows of 8 seconds, one every 2 seconds (or as `--windows` says), slide over the frames, of
    which each passes the trunk once. Exported folders need `export --split`.

    An event begins where a text's probability among all texts is at least `--on`, and ends where it
    falls below `--off`. What else may be seen is given as `--not`, or as further texts. Of what is
    live, the oldest frames are dropped when the network is too slow; of a file none.
    """
    from stan_infer.cli.report import say
    from stan_infer.cli.watch_results import WatchResults, watch_view
    from stan_infer.errors import StanError
    from stan_infer.system import kept
    from stan_infer.system.atomic import files_of
    from stan_infer.system.signals import EndedBySignal
    from stan_infer.text.templates import PLAIN, read_templates
    from stan_infer.video.address import parse_source
    from stan_infer.video.feed import FeedOptions
    from stan_infer.video.windows import Windows, parse_windows
    from stan_infer.watch.watch import SECONDS, STRIDE, Watch, WatchOptions

    # Always on a grid, with ":grid" or without it.
    given = Windows(seconds=SECONDS, stride=STRIDE)
    if windows is not None:
        given = parse_windows(windows)
    options = WatchOptions(
        seconds=given.seconds or SECONDS,
        stride=given.stride,
        frames=frames,
        measure=measure,
        on=on,
        off=off,
        hold_s=hold,
    )
    reading = FeedOptions(stall_s=stall, reconnect=reconnect, realtime=realtime)
    names = read_texts(text, labels, split_words, texts)
    templates = read_templates(template or PLAIN)
    parsed = parse_source(source)
    files = [p for p in (labels, texts, calibration) if p is not None]
    sources: list[str | Path] = [*files_of(checkpoint), *files]
    sources += [source] if parsed.kind == "file" else []
    with WatchResults(json, out, plot, sources) as results:
        session = open_for(context)
        with Watch(
            session,
            source,
            names,
            without or [],
            options,
            reading,
            templates=templates,
            say=say,
        ) as watched:
            try:
                with watch_view(watched):
                    for item in watched:
                        results.add(watched, item)
            except (KeyboardInterrupt, EndedBySignal):
                results.finish(watched)
                if results.events:
                    many = "event was" if results.events == 1 else "events were"
                    kept.note_printed(f"{results.events} {many} printed")
                raise
            except StanError:
                if watched.windows:
                    results.finish(watched)
                raise
            results.finish(watched)
