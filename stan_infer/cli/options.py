"""Options that several commands share, and functions that parse their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    return str(located(source, locked=bool(context.params.get("locked")), say=say, write=True))


Locked = Annotated[
    bool,
    typer.Option(
        "--locked",
        is_eager=True,
        help="Take from the hub only what stan-infer.lock lists, unchanged.",
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
        help="A config field that tensor shapes do not show; may be repeated.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which of several sets in a checkpoint, as `inspect` lists them; ema: the average.",
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
        metavar="NAME", help=f"{devices_listed()} (default: cpu; cuda if the engine needs it)."
    ),
]
AutoRebuild = Annotated[
    bool, typer.Option("--auto-rebuild", help="Rebuild a plan of another version or GPU (minutes).")
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
        help="Folder that `calibrate` made from CKPT: for fp8 in engine triton, in bench also "
        "int8.",
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto (PyAV), pyav, decord (refused where it returns other frames than it says) or "
        "decord-as-is.",
    ),
]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="Time allowed to decode one video, or one window.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Precision: fp32, fp16, bf16 (default: fp32; of a folder its own)."
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
        help=f"Engine: several of {', '.join(ENGINES)} (default: eager,ort; of a folder ort).",
    ),
]
PrecisionEach = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Precision: several of fp32, fp16, bf16; with --calibration int8, fp8 (default: fp32; "
        "fp16 for engines that need a GPU; of a folder its own).",
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
        help="Frames per clip: 12, or 1:64 for a dynamic axis (default: all); plans MIN:OPT:MAX.",
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
        help="Clips per call of the network: 1, or 1:32 for a dynamic axis (default); plans "
        "MIN:OPT:MAX,...",
    ),
]
VideosOfNames = Annotated[
    Path, typer.Option(metavar="DIR", help="Videos: the folder that holds them, at any depth.")
]
VideosOrList = Annotated[
    Path, typer.Option(metavar="DIR|LIST", help="Videos: a folder of ones like yours, or a list.")
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
    return listed_texts(text, texts)


def listed_texts(text: Sequence[str] | None, texts: Path | None) -> list[str]:
    """The texts of --text, then those of the file of --texts; InputError for a blank one."""
    from stan_infer.system.outside_file import read_lines
    from stan_infer.text.blank import check_not_blank

    check_not_blank(text or [], "--text")
    return [*(text or []), *([] if texts is None else read_lines(texts, "texts"))]
