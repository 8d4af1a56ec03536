"""The command `stan-infer run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stan_infer.cli.given import open_for, read_texts
from stan_infer.cli.options import (
    AutoRebuild,
    Batch,
    Calibration,
    CheckpointOrFolder,
    Csv,
    Decoder,
    Device,
    Engine,
    Frames,
    Json,
    Labels,
    Locked,
    Overlapping,
    Parts,
    Precision,
    Provider,
    Settings,
    SplitWords,
    Template,
    Text,
    Texts,
    Threads,
    Timeout,
    Top,
    Videos,
    Weights,
    Workers,
)

if TYPE_CHECKING:
    from stan_infer.video.clip import Clip
    from stan_infer.video.windows import Windows


def run(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    videos: Videos,
    text: Text = None,
    texts: Texts = None,
    labels: Labels = None,
    split_words: SplitWords = False,
    template: Template = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="video|text",
            help="video: the best texts for each clip; text: the best clips for each text.",
        ),
    ] = "video",
    top: Top = 5,
    windows: Parts = None,
    overlapping: Overlapping = False,
    start: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Score nothing before this time in a video."),
    ] = 0.0,
    end: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="Score nothing after this time (default: to the end)."
        ),
    ] = None,
    csv: Csv = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: Frames = None,
    batch: Batch = 1,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    decoder: Decoder = "auto",
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Score videos against texts, and show which fit best.

    `--by video` shows the best texts for each clip, `--by text` the best clips for each text. With
    `--windows`, every clip is a part of a video, and `--by text` shows a moment once: parts that
    share half or more with a better one of their video are left out (`--top 0` shows all).

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from contextlib import closing

    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_json, say
    from stan_infer.cli.run_results import CSV, ClipsOfTexts, Output, TextsOfClips
    from stan_infer.errors import InputError, check_word
    from stan_infer.library.embed import embed_videos
    from stan_infer.library.readings import EmbedOptions
    from stan_infer.library.texts import embed_texts
    from stan_infer.system import kept
    from stan_infer.system.atomic import check_file, files_of
    from stan_infer.system.signals import EndedBySignal
    from stan_infer.text.templates import PLAIN, read_templates
    from stan_infer.video.decode_worker import early_workers
    from stan_infer.video.find import list_videos
    from stan_infer.video.gaps import gap_note
    from stan_infer.video.hdr import hdr_note
    from stan_infer.video.spec import ClipSpec

    check_word("--by", by, ("video", "text"))
    parts = _windows(windows, start, end)
    if overlapping and (by != "text" or parts is None):
        raise InputError("--overlapping is about parts that are ranked: add --by text --windows 10")
    templates = read_templates(template or PLAIN)
    names = read_texts(text, labels, split_words, texts)
    paths = list_videos(videos)
    files = [p for p in (labels, texts, calibration) if p is not None]
    sources = [*files_of(checkpoint), *files, *paths]
    if csv is not None:
        check_file(csv, CSV, sources=sources)
    with early_workers(workers, len(paths) if windows is None else 64):
        session = open_for(context, yielding=True)
        scored = embed_texts(session, names, templates)
        spec = ClipSpec.of(session.config, decoder=decoder, frames=frames)
        output = Output(
            scored, top, json, csv, sources, has_parts=parts is not None, overlapping=overlapping
        )
        results = ClipsOfTexts(output) if by == "text" else TextsOfClips(output, paths)
        readings = embed_videos(
            session,
            paths,
            EmbedOptions(batch, workers, timeout),
            spec=spec,
            windows=parts,
            note=False,
        )
        failed: set[Path] = set()
        told: set[Path] = set()
        seen: set[Path] = set()
        try:
            with closing(readings), progress_bar("scoring", len(paths)) as step:
                shown = 0.0
                for reading in readings:
                    path, clip = reading.path, reading.clip
                    seen.add(path)
                    part = 1.0 if parts is None or clip is None else _place(clip)
                    step(max(0.0, len(seen) - 1 + part - shown))
                    shown = max(shown, len(seen) - 1 + part)
                    if clip is None or reading.features is None:
                        failed.add(path)
                        say(f"error: {reading.error}")
                        if json:
                            print_json("run", {"video": str(path), "error": reading.error})
                        continue
                    notes = gap_note(path, clip.gap_s, spec.frames), hdr_note(path, clip.hdr)
                    for note in notes if path not in told else ():
                        if note:
                            told.add(path)
                            say(note)
                    results.add(path, clip, scored.scores(reading.features))
        except (KeyboardInterrupt, EndedBySignal):
            if results.clips:
                results.finish()
                kept.note_printed(f"the results of {results.clips} clips were printed")
            raise
    results.finish()
    if failed:
        whole = "" if windows is None else ", or not all of their windows"
        say(f"{len(failed)} of {len(paths)} videos could not be read{whole}")
        raise typer.Exit(2)


def _place(clip: Clip) -> float:
    """Which part of its video has been read with a clip, 0 to 1."""
    return float(clip.indices[-1] + 1) / clip.total_frames


def _windows(text: str | None, start: float, end: float | None) -> Windows | None:
    """The parts that the options ask for, None for whole videos."""
    from stan_infer.video.windows import Windows, parse_windows

    if text is not None:
        return parse_windows(text, start=start, end=end)
    return None if start == 0 and end is None else Windows(start=start, end=end)
