"""Options that several commands share, and functions that parse their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.checkpoints.weights_folder import MANIFEST, is_exported
from stan_infer.engines.open import ENGINES, devices_listed, listed
from stan_infer.errors import InputError

if TYPE_CHECKING:
    from stan_infer.engines.session import Session
    from stan_infer.text.labels import Labels as ClassNames


def fetched(context: typer.Context, source: str | None) -> str | None:
    """Replace a name on the hub by the path of its file or folder, which is fetched."""
    from stan_infer.checkpoints.hub import located
    from stan_infer.cli.report import say

    if source is None or context.resilient_parsing:
        return source
    # --locked is eager: its value is there before that of any argument.
    path = located(source, locked=bool(context.params.get("locked")), say=say, write=True)
    _refuse_videos(context, Path(path))
    return str(path)


def _refuse_videos(context: typer.Context, path: Path) -> None:
    """Raise InputError for videos in the place of a checkpoint, before anything else is said."""
    from stan_infer.system.outside_file import refuse_video
    from stan_infer.video.find import SUFFIXES

    is_first = any(
        p.name == "videos" and p.param_type_name == "argument" for p in context.command.params
    )
    refuse_video(path, is_first=is_first)
    if is_exported(path) and not (path / MANIFEST).exists():
        if any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            help = "give the checkpoint first, then the videos" if is_first else "give a checkpoint"
            raise InputError(f"{path} is a folder with videos, not an exported one; {help}")


Locked = Annotated[
    bool,
    typer.Option(
        "--locked",
        is_eager=True,
        help="Of hf: names, use only files that stan-infer.lock lists, unchanged.",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        callback=fetched,
        help="Checkpoint file, hf:OWNER/NAME[@REVISION][/FILE], or an open_clip NAME:TAG.",
    ),
]
CheckpointOrFolder = Annotated[
    str,
    typer.Argument(
        metavar="CKPT_OR_DIR",
        callback=fetched,
        help="Checkpoint file, hf:OWNER/NAME[@REVISION][/FILE], open_clip NAME:TAG, exported "
        "folder or .plan.",
    ),
]
ModelIfAny = Annotated[
    str | None,
    typer.Argument(
        metavar="CKPT_OR_DIR", callback=fetched, help="A model, to compare with the library's."
    ),
]
LibraryFolder = Annotated[
    Path, typer.Argument(metavar="LIBRARY", help="A library, as `embed` writes it.")
]
Videos = Annotated[
    list[Path], typer.Argument(metavar="VIDEOS", help="Videos, or folders of videos.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="What the weights do not show, such as head=mug; may be repeated.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which set of weights to read where a checkpoint has several (`inspect` lists them); "
        "ema: the average.",
    ),
]
Text = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text; may be repeated.")]
Texts = Annotated[Path | None, typer.Option(metavar="FILE", help="File with one text per line.")]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Class names: one per line, lines of a number and a name, a table with the columns "
        "id,name, or JSON; numbers decide the order.",
    ),
]
SplitWords = Annotated[
    bool,
    typer.Option(
        "--split-words", help="Write the names of --labels as words: brush_hair, ApplyEyeMakeup."
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SENTENCE|SET",
        help="Sentence with {} for the text or class, or openai-80, kinetics-16, kinetics-28; "
        "may be repeated: embeddings are averaged (default: the text alone).",
    ),
]
_ANNOTATIONS = typer.Option(
    metavar="FILE",
    help="Annotation file: the data set's own, or CSV with the columns video,label or video,text.",
)
Annotations = Annotated[Path, _ANNOTATIONS]
AnnotationsIfAny = Annotated[Path | None, _ANNOTATIONS]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per result.")]
Engine = Annotated[str | None, typer.Option(metavar="NAME", help=f"Engine: {listed()}.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Device: {devices_listed()} (default: cpu; cuda if the engine needs it).",
    ),
]
AutoRebuild = Annotated[
    bool,
    typer.Option(
        "--auto-rebuild",
        help="Build a plan anew if it is of another version or GPU (takes minutes).",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For engine ort: cpu, cuda, cuda-graph, tensorrt, tensorrt-rtx (default: by "
        "--device).",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder that `calibrate` made from this checkpoint, for fp8 in engine triton and, in "
        "bench, for int8.",
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Video decoder: auto (PyAV), pyav, decord (refuses files in which it returns wrong "
        "frames) or decord-as-is (refuses none).",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=0.001, help="Time allowed to decode one video, or one window."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Precision: fp32, fp16, bf16 (default: fp32; for a folder its own)."
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        metavar="T",
        min=1,
        max=64,
        help="Frames per clip (default: the model's; in eval the paper's).",
    ),
]
Batch = Annotated[
    int, typer.Option(metavar="B", min=1, max=64, help="Clips per call of the network.")
]
Parts = Annotated[
    str | None,
    typer.Option(
        "--windows",
        metavar="SECONDS[:STRIDE]",
        help="Cut each video into parts of SECONDS, each on its own (embed: in a library); a part "
        "begins every STRIDE seconds (default: where the one before ends).",
    ),
]
Top = Annotated[
    int, typer.Option(metavar="K", min=0, help="How many of the best are shown (0: all).")
]
Csv = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the rows as a CSV file.")
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads of engines (default: all CPUs)."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=64, help="Decoding processes (default: one per CPU, at most 8)."
    ),
]

# The same options where they take several values, a range, or are about what is written.
EngineEach = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help=f"Engine: several of {', '.join(ENGINES)} (default: eager,ort; for a folder ort).",
    ),
]
PrecisionEach = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Precision: several of fp32, fp16, bf16; with --calibration int8, fp8 (default: fp32; "
        "fp16 for engines that need a GPU; for a folder its own).",
    ),
]
PrecisionWritten = Annotated[
    str, typer.Option(metavar="NAME", help="Precision: fp32, fp16 or bf16.")
]
PrecisionOf8Bits = Annotated[
    str, typer.Option(metavar="NAME", help="Precision: int8, or fp8 (GPUs from sm_89 on).")
]
FramesEach = Annotated[
    str, typer.Option(metavar="T,...", help="Frames per clip: all of these are tried.")
]
FramesRange = Annotated[
    str | None,
    typer.Option(
        metavar="T|MIN:MAX",
        help="Frames per clip: 12, or 1:64 for any number between (default: all that the model "
        "takes); for plans MIN:OPT:MAX.",
    ),
]
FramesOfLibrary = Annotated[
    int | None,
    typer.Option(metavar="T", min=1, max=64, help="Frames per clip (default: the library's)."),
]
BatchOfLibrary = Annotated[
    int | None,
    typer.Option(
        metavar="B", min=1, max=64, help="Clips per call of the network (default: the library's)."
    ),
]
DecoderOfLibrary = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="auto (PyAV), pyav, decord, decord-as-is (default: the library's)."
    ),
]
BatchEach = Annotated[
    str,
    typer.Option(metavar="B,...", help="Clips per call of the network: all of these are tried."),
]
BatchRange = Annotated[
    str | None,
    typer.Option(
        metavar="B|MIN:MAX",
        help="Clips per call of the network: 1, or 1:32 for any number between (default); for "
        "plans MIN:OPT:MAX,...",
    ),
]
VideosOfNames = Annotated[
    Path, typer.Option(metavar="DIR", help="Videos: the folder that holds them, at any depth.")
]
VideosOrList = Annotated[
    Path,
    typer.Option(
        metavar="DIR|LIST",
        help="Videos: a folder of ones like those to come, or a file that lists them.",
    ),
]
VideosIfAny = Annotated[
    Path | None,
    typer.Option(metavar="FILE|DIR", help="Videos: one, or a folder (default: generated ones)."),
]
TopOfMany = Annotated[
    int, typer.Option(metavar="K", min=1, max=10_000, help="How many of the best are shown.")
]
# Names that have several forms; their helps begin alike, up to a colon or bracket.
FORMS = {
    "--top": (Top, TopOfMany),
    "--videos": (VideosOfNames, VideosOrList, VideosIfAny),
    "--engine": (Engine, EngineEach),
    "--precision": (Precision, PrecisionEach, PrecisionWritten, PrecisionOf8Bits),
    "--frames": (Frames, FramesEach, FramesRange, FramesOfLibrary),
    "--batch": (Batch, BatchEach, BatchRange, BatchOfLibrary),
    "--decoder": (Decoder, DecoderOfLibrary),
}


_OF_SESSIONS = (
    *("engine", "device", "precision", "provider", "threads", "calibration", "auto_rebuild"),
)


def use_threads(context: typer.Context) -> None:
    """Let all that a command opens from here on take the CPU threads of --threads."""
    from stan_infer.engines.thread_count import thread_count

    if context.params.get("threads"):
        context.with_resource(thread_count(context.params["threads"]))


def session_options(context: typer.Context) -> dict[str, Any]:
    """The options of open_session that a command was given: settings and those of _OF_SESSIONS."""
    use_threads(context)
    check_said_once(context)
    given = context.params
    found = {name: given[name] for name in _OF_SESSIONS if name in given}
    return found | {"settings": parse_settings(given["settings"], given["weights"]) or None}


def open_for(context: typer.Context, **options: Any) -> Session:
    """Open the session that the arguments and options of a command describe.

    options: further ones of open_session. The session is closed when the command ends, however it
    ends. Raises what open_session raises.
    """
    from stan_infer.engines.open import open_session

    session = open_session(context.params["checkpoint"], **session_options(context), **options)
    context.call_on_close(session.close)
    return session


def check_said_once(context: typer.Context) -> None:
    """Raise InputError for a field of --set that an option which was given says too."""
    settings = parse_settings(context.params["settings"])
    for field, name in (("frames", "frames"), ("context_length", "text_length")):
        if field in settings and context.params.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"--set {field}={settings[field]} and {option} {context.params[name]} say the "
                "same: give one of them"
            )


def parse_settings(pairs: Sequence[str] | None, weights: str | None = None) -> dict[str, Any]:
    """["heads=2"] -> {"heads": "2"}, and --weights as `weights`; load_model checks them."""
    settings: dict[str, Any] = {} if weights is None else {"weights": weights}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise InputError(f"--set {pair!r} is not KEY=VALUE, as in --set heads=2")
        name = name.strip().replace("-", "_")
        if name == "weights":
            raise InputError(f"--set {pair}: give --weights {value.strip()}")
        if name in settings:
            raise InputError(f"--set {name} is given twice: give it once")
        settings[name] = value.strip()
    return settings


def parse_numbers(text: str, name: str, high: int) -> list[int]:
    """ "1,4" -> [1, 4], each once; InputError for other text or a number outside 1 to `high`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} {text!r} is no list of whole numbers, as in {name} 1,4") from None
    for n in numbers:
        if not 1 <= n <= high:
            raise InputError(f"{name} {n} is out of range; allowed are 1 to {high}")
    return list(dict.fromkeys(numbers))


def class_names(labels: Path | None, split_words: bool) -> ClassNames | None:
    """The class names of --labels, None without it; InputError for --split-words alone."""
    if labels is None:
        if split_words:
            raise InputError("--split-words changes the names of --labels; give --labels FILE")
        return None
    from stan_infer.text.labels import read_labels

    return read_labels(labels, split_words=split_words)


def read_texts(
    text: Sequence[str] | None,
    labels: Path | None,
    split_words: bool = False,
    texts: Path | None = None,
) -> list[str]:
    """The texts of --text, of the file of --texts, or the names of --labels.

    Raises InputError unless one of them was given, and for a blank text.
    """
    if [bool(text), texts is not None, labels is not None].count(True) != 1:
        raise InputError(
            "give either --text TEXT (once or more), --texts FILE (one per line) or --labels FILE "
            "(class names)"
        )
    found = class_names(labels, split_words)
    if found is not None:
        return list(found.names)
    names = listed_texts(text, texts)
    _check_once(names, f"texts {texts}")  # probabilities are shared by all
    return names


def listed_texts(text: Sequence[str] | None, texts: Path | None) -> list[str]:
    """The texts of --text, then those of the file of --texts.

    Raises InputError for a blank one, and for a --text that is given twice; lines of a file may be
    alike, as captions are.
    """
    from stan_infer.system.outside_file import read_lines
    from stan_infer.text.blank import check_not_blank

    check_not_blank(text or [], "--text")
    _check_once(text or [], "--text")
    return [*(text or []), *([] if texts is None else read_lines(texts, "texts"))]


def _check_once(texts: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise InputError(f"{where}: {text[:60]!r} is there twice; give each text once")
        seen.add(text)
