"""Options that several commands share; what they say is read by cli.given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.checkpoints.weights_folder import MANIFEST, is_exported
from stan_infer.engines.open import ENGINES, devices_listed, listed
from stan_infer.errors import InputError


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
CheckpointOrExport = Annotated[
    str,
    typer.Argument(
        metavar="CKPT_OR_DIR",
        callback=fetched,
        help="Checkpoint file, hf:OWNER/NAME[@REVISION][/FILE], open_clip NAME:TAG, or exported "
        "folder.",
    ),
]
ModelIfAny = Annotated[
    str | None,
    typer.Argument(
        metavar="CKPT_OR_DIR", callback=fetched, help="A model, to compare with the library's."
    ),
]
ModelOfLibrary = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="CKPT_OR_DIR",
        callback=fetched,
        help="The model that made LIBRARY (default: looked for by its name and hash, here and "
        "beside LIBRARY).",
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
Without = Annotated[
    list[str] | None,
    typer.Option("--not", metavar="TEXT", help="A text that lowers scores; may be repeated."),
]
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
        help="Cut each video into parts of SECONDS, each on its own; a part begins every STRIDE "
        "seconds (default: where the one before ends). With :grid overlapping parts share frames, "
        "each of which passes the trunk once.",
    ),
]
Overlapping = Annotated[
    bool,
    typer.Option(
        "--overlapping",
        help="Also show parts that share half or more with a better one of their video.",
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
        metavar="N",
        min=1,
        max=64,
        help="Decoding processes (default: as many as the first clips show to be needed, at most "
        "one per CPU and 8).",
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
        metavar="NAME",
        help="Video decoder: auto (PyAV), pyav, decord or decord-as-is (default: the library's).",
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
Mug = Annotated[
    bool,
    typer.Option(
        "--mug",
        help="Scores of the model's Mug head: of the best 100, whose videos are read again.",
    ),
]
MugOffered = Annotated[
    bool,
    typer.Option(
        "--mug",
        help="Scores of the model's Mug head: the page offers them; videos are read again.",
    ),
]
# Names that have several forms; their helps begin alike, up to a colon or bracket.
FORMS = {
    "--top": (Top, TopOfMany),
    "--mug": (Mug, MugOffered),
    "--videos": (VideosOfNames, VideosOrList, VideosIfAny),
    "--engine": (Engine, EngineEach),
    "--precision": (Precision, PrecisionEach, PrecisionWritten, PrecisionOf8Bits),
    "--frames": (Frames, FramesEach, FramesRange, FramesOfLibrary),
    "--batch": (Batch, BatchEach, BatchRange, BatchOfLibrary),
    "--decoder": (Decoder, DecoderOfLibrary),
}
