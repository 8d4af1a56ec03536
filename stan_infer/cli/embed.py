"""The command `stan-infer embed`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.options import (
    AutoRebuild,
    Batch,
    Calibration,
    CheckpointOrFolder,
    Decoder,
    Device,
    Engine,
    Json,
    Provider,
    Settings,
    Timeout,
    Weights,
    Workers,
    open_for,
)

if TYPE_CHECKING:
    from stan_infer.engines.session import Session
    from stan_infer.library.levels import Level


def embed(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="File to write: .npz, .npy (and .json), .parquet."
        ),
    ],
    videos: Annotated[
        list[Path] | None, typer.Argument(help="Videos, or folders of videos.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; repeat it.")] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Texts to embed, one per line.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="video: one vector each; frame: one per frame; token: one per frame or text"
            " token (default: as the head scores)."
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide every vector by its length.")
    ] = False,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    batch: Batch = 1,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    decoder: Decoder = "auto",
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Write the embeddings of videos and texts to a file.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.errors import InputError, first_reasons
    from stan_infer.library.embed import EmbedOptions, embed_videos
    from stan_infer.library.embedding_file import check_embeddings, new_embeddings
    from stan_infer.library.levels import Level, normalised
    from stan_infer.system.atomic import files_of
    from stan_infer.video.decode_worker import early_workers
    from stan_infer.video.find import list_videos
    from stan_infer.video.spec import ClipSpec

    words = _texts(text, texts)
    if not videos and not words:
        raise InputError("nothing to embed: give videos, --text or --texts")
    if level == "token" and not words:
        raise InputError("--level token is of texts: give --text or --texts, or --level frame")
    paths = list_videos(videos or [])
    sources = [*files_of(checkpoint), *(p for p in (calibration, texts) if p), *paths]
    check_embeddings(out, videos=bool(paths), texts=bool(words), sources=sources)
    failed: dict[str, str] = {}
    decoders = set()
    with early_workers(workers, len(paths)):
        session = open_for(context, yielding=True)
        kept = Level(session, level)
        info = _info(session, checkpoint, kept, normalise)
        with (
            progress_bar("embedding", len(paths) + len(words)) as step,
            new_embeddings(out, info, sources=sources) as file,
        ):
            for part, ids, features in _embedded(session, words):
                found = kept.of_texts(features, ids)
                file.add_texts(part, ids, normalised(found, "texts") if normalise else found)
                step(len(part))
            readings = embed_videos(
                session,
                paths,
                EmbedOptions(batch, workers, timeout),
                spec=ClipSpec.of(session.config, decoder=decoder),
            )
            for reading in readings:
                step()
                error = reading.error
                if reading.clip is not None and reading.features is not None:
                    found = kept.of_video(reading.features)
                    try:
                        found = normalised(found, str(reading.path)) if normalise else found
                        file.add_video(reading.path, reading.clip, found)
                        decoders.add(reading.clip.decoder)
                    except InputError as e:
                        error = str(e)
                if error:
                    failed[str(reading.path)] = error
                    say(f"error: {error}")
            if paths and len(failed) == len(paths):
                why = first_reasons(failed.values(), "")
                raise InputError(
                    f"none of the {len(paths)} videos could be read: {why}; {out} was not written"
                )
    record = {
        "out": str(out),
        "videos": len(paths) - len(failed),
        "texts": len(words),
        "failed": len(failed),
        "level": info["level"],
        "normalised": normalise,
        **session.describe(),
        "decoders": sorted(decoders),
    }
    if json:
        failures = [{"video": k, "error": v} for k, v in failed.items()]
        print_json("embed", {**record, "failures": failures})
    else:
        print_facts({**record, "level": ", ".join(dict.fromkeys(info["level"].values()))})
    if failed:
        raise typer.Exit(2)


def _texts(given: list[str] | None, file: Path | None) -> list[str]:
    from stan_infer.errors import InputError
    from stan_infer.system.outside_file import read_lines

    if not all(t.strip() for t in given or []):
        raise InputError("a text of --text is blank; give words")
    return [*(given or []), *(read_lines(file, "texts") if file else [])]


def _embedded(session: Session, texts: list[str]) -> Iterator[tuple[list[str], Any, Any]]:
    """Texts, their ids [Q, L] and features, some texts at a time."""
    from stan_infer.engines.session import TEXT_CHUNK, as_numpy, token_ids

    for i in range(0, len(texts), TEXT_CHUNK):
        part = texts[i : i + TEXT_CHUNK]
        ids = token_ids(session.config, part, session.vocabulary)
        yield part, ids, as_numpy(session.embed_text(ids))


def _info(session: Session, checkpoint: str, level: Level, normalise: bool) -> dict[str, Any]:
    """What a file says of itself; see embedding_file."""
    from stan_infer import __version__
    from stan_infer.errors import storable
    from stan_infer.library.model_files import model_hashes

    hashes = {storable(name): value for name, value in model_hashes(checkpoint).items()}
    return {
        "config": session.config.to_dict(),
        "engine": session.describe(),
        "source": {"checkpoint": storable(Path(checkpoint).name), "sha256": hashes},
        "level": level.to_dict(),
        "normalised": normalise,
        "stan_infer": __version__,
    }
