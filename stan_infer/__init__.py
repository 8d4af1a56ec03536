"""Run trained STAN and Mug-STAN video-text checkpoints: score, find, embed, evaluate, export.

    import stan_infer as si

    with si.open_session("model.safetensors") as session:    # or an exported folder
        clip = session.read_clip("dog.mp4")                  # uint8 [T, S, S, 3]
        clip = session.prepare(frames, order="bgr")          # of a camera: uint8 [H, W, 3]
        session.score(["a dog runs", "a cat"], clip[None])   # float32 [texts, clips]
        session.embed_video(clip[None])                      # float32 [clips, E]
        session.embed_text(["a dog runs"])                   # float32 [texts, E]

open_session    open a checkpoint or an exported folder in an engine, on a device
Session         what it returns, with the methods above, score_embeddings, describe and close
embed_videos    videos or folders of them -> arrays, and a .npz file
embed_library   the same into a folder that goes on after any stop; only what is new is embedded
open_library    such a folder -> its rows as arrays, whose vectors they are, and search
evaluate        R@1/5/10 or top-1/5 on a data set's annotation file, with the protocol
export_model    a model -> a folder that runs without PyTorch, compared with the model
calibrate       the same in 8 bits, within a bound that is checked on held-out videos
verify          compare two models, from video bytes to rank
bench           time engines against each other, in turn
load_model      read a checkpoint as a torch module
save_model      write one as safetensors
convert         rewrite a checkpoint as safetensors
read_clip       a video file -> uint8 [T, S, S, 3], of a size or a config
sample_indices  the frame numbers that the authors take
tokenize        texts -> CLIP's token ids
StanConfig      sizes and preprocessing of a model
StanError       the base of InputError (wrong input), MissingError (a package or device is not
                here) and CheckError (a check failed); each says what to do

help(si.NAME) has shapes, units, errors and an example of each. Results are frozen; str() is one
sentence, to_dict() JSON types. The names are imported when they are first used.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from stan_infer.system import privacy as _privacy

__version__ = "0.1.0"

_privacy.switch_off_telemetry()

# There is no __all__: help() would then print every docstring of the package on 1,000 lines.
if _TYPE_CHECKING:
    from stan_infer.benchmarking.run import bench as bench
    from stan_infer.checkpoints.load import convert as convert
    from stan_infer.checkpoints.load import load_model as load_model
    from stan_infer.checkpoints.load import save_model as save_model
    from stan_infer.config import StanConfig as StanConfig
    from stan_infer.engines.open import open_session as open_session
    from stan_infer.engines.session import Session as Session
    from stan_infer.errors import CheckError as CheckError
    from stan_infer.errors import InputError as InputError
    from stan_infer.errors import MissingError as MissingError
    from stan_infer.errors import StanError as StanError
    from stan_infer.evaluation.from_files import evaluate as evaluate
    from stan_infer.export.export_model import export_model as export_model
    from stan_infer.library.embed_library import embed_library as embed_library
    from stan_infer.library.embeddings import embed_videos as embed_videos
    from stan_infer.library.library import open_library as open_library
    from stan_infer.quantisation.from_videos import calibrate as calibrate
    from stan_infer.text.tokenizer import tokenize as tokenize
    from stan_infer.verification.verification import verify as verify
    from stan_infer.video.clip import read_clip as read_clip
    from stan_infer.video.clip import sample_indices as sample_indices

_HOME = {
    "CheckError": "errors",
    "InputError": "errors",
    "MissingError": "errors",
    "Session": "engines.session",
    "StanConfig": "config",
    "StanError": "errors",
    "bench": "benchmarking.run",
    "calibrate": "quantisation.from_videos",
    "convert": "checkpoints.load",
    "embed_library": "library.embed_library",
    "embed_videos": "library.embeddings",
    "evaluate": "evaluation.from_files",
    "export_model": "export.export_model",
    "load_model": "checkpoints.load",
    "open_library": "library.library",
    "open_session": "engines.open",
    "read_clip": "video.clip",
    "sample_indices": "video.clip",
    "save_model": "checkpoints.load",
    "tokenize": "text.tokenizer",
    "verify": "verification.verification",
}


def __getattr__(name: str) -> _Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stan_infer' has no attribute '{name}'")
    return getattr(_importlib.import_module(f"stan_infer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
