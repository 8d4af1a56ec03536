"""Session: the interface of every engine, and what does not depend on the engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.engines.inputs import as_numpy, token_ids
from stan_infer.engines.lifetime import Lifetime
from stan_infer.errors import InputError, nearest
from stan_infer.scores import head_scores
from stan_infer.video.clip import read_clip_info
from stan_infer.video.frames import clip_of_frames
from stan_infer.video.spec import ClipSpec

if TYPE_CHECKING:
    from stan_infer.engines.stream import Parts, Stream

TEXT_CHUNK = 256  # texts per call of a network: 100,000 labels at once would take 130 GB


class Session(Lifetime):
    """A model opened on a device: what `open_session` returns, for annotations.

    Every engine takes the same inputs, refuses the same ones, and returns float32 numpy arrays.
    B clips, T frames, Q texts, L tokens, E embedding width, S side of a frame in pixels.

    `with open_session(...) as session` closes it at the end; after `close` every method raises
    InputError. A pickle holds what was given to open_session, not the weights of a file, and opens
    it again where it is loaded, as in a process of multiprocessing: a folder that was exported anew
    in between is a CheckError.

    Example:
        >>> import stan_infer as si
        >>> with si.open_session("examples/motion/motion.safetensors") as session:
        ...     clip = session.read_clip("examples/motion/clips/red_cross_moves_left.mp4")
        ...     scores = session.score(["a shape moves left", "a shape moves right"], clip[None])
        >>> scores.shape, int(scores[:, 0].argmax())
        ((2, 1), 0)
    """

    # An engine defines _video and _text; where these return tensors also _tensors_on, the
    # torch.device on which they lie.
    # True: features of every frame and token where the head scores means, too.
    fine = False
    _tensors_on: Any = None

    @property
    def keeps_rows(self) -> bool:
        """Whether embed_video returns [B, T, E] and embed_text [Q, L, E]."""
        return self.fine or self.config.is_mug

    @property
    @abstractmethod
    def config(self) -> StanConfig:
        """The model's config: T is `config.frames`, S `config.image_size`, E `config.embed_dim`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts about the session, as JSON types.

        Returns:
            "engine", "device", "precision"; the version of each runtime, by its package ("torch",
            "onnxruntime", ...); "provider" if the runtime has several; all that was chosen for the
            user.

        Example:
            >>> import stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     session.describe()["engine"]
            'eager'
        """

    @abstractmethod
    def _video(self, video: Any) -> Any:
        """embed_video in the engine's own kind of array, on a GPU perhaps still being computed."""

    @abstractmethod
    def _text(self, texts: Any) -> Any:
        """embed_text in the engine's own kind of array."""

    @property
    def vocabulary(self) -> Path | None:
        """The tokenizer.json that strings are tokenised with; None: CLIP's own vocabulary."""
        return None

    @property
    def source(self) -> Any:
        """What open_session was given: a path, a name of open_clip, a model; None: unknown."""
        return self._reopen[1][0] if self._reopen else None

    @property
    def options(self) -> dict[str, Any]:
        """What else open_session was given: device, precision, settings and more."""
        return dict(self._reopen[1][2]) if self._reopen else {}

    @property
    def has_tensors(self) -> bool:
        """Whether as_tensor=True is allowed: in engines that run in torch."""
        return self._tensors_on is not None

    @property
    def runs_ahead(self) -> bool:
        """Whether embed_video returns before a GPU has computed, with as_tensor=True."""
        return self.has_tensors and self._tensors_on.type != "cpu"

    def embed_video(self, video: Any, *, as_tensor: bool = False) -> Any:
        """Clips -> their features, which are not normalised.

        Args:
            video: clips as an array, a torch tensor on any device, or a list of them of one size,
                contiguous or not: uint8 [B, T, S, S, 3] RGB, or floats [B, T, 3, S, S] normalised
                by the config's mean and std, which are taken as float32 whatever their width. The
                layout follows the dtype and is never guessed. Folders exported for uint8, engine
                triton and the fused graph take no floats.
            as_tensor: return a torch tensor on the session's device, of which a GPU may still be
                computing the values.

        Returns:
            float32 [B, E], or [B, T, E] with a Mug head: a numpy array unless as_tensor.

        Raises:
            InputError: other dtypes and shapes, no clips, floats that are not finite, as_tensor in
                an engine without torch, a closed session.

        Example:
            >>> import numpy as np, stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     s = session.config.image_size
            ...     session.embed_video(np.zeros((2, 8, s, s, 3), np.uint8)).shape
            (2, 64)
        """
        self._check_tensors(as_tensor)
        return self._result(self._video(video), as_tensor)

    def embed_text(self, texts: Any, *, as_tensor: bool = False) -> Any:
        """Texts -> their features, which are not normalised.

        Args:
            texts: a string, any iterable of strings (a generator, an array of numpy's strings), or
                token ids, ints [Q, L] as an array, a tensor or lists. Strings are tokenised by
                CLIP's rules, to L = `config.context_length`.
            as_tensor: return a torch tensor on the session's device.

        Returns:
            float32 [Q, E], or [Q, L, E] with a Mug head: a numpy array unless as_tensor.

        Raises:
            InputError: no texts, a blank one, an item that is no string, ids out of range, a model
                without a text tower, as_tensor in an engine without torch, a closed session.

        Example:
            >>> import stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     session.embed_text(["a shape moves left", "a shape grows"]).shape
            (2, 64)
        """
        self._check_tensors(as_tensor)
        return self._result(self._text(texts), as_tensor)

    def score(self, texts: Any, video: Any, *, as_tensor: bool = False) -> Any:
        """Texts x clips -> scores: the cosine, or the Mug score; larger fits better.

        Args:
            texts: see embed_text.
            video: see embed_video.
            as_tensor: return a torch tensor on the session's device.

        Returns:
            float32 [Q, B]: a numpy array unless as_tensor. `softmax(scores / config.temperature)`
            over the texts gives the probabilities that `stan-infer run` prints.

        Raises:
            InputError: see embed_text and embed_video.

        Example:
            >>> import stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     clip = session.read_clip("examples/motion/clips/blue_square_fades_in.mp4")
            ...     session.score("a shape fades in", clip[None]).round(1).tolist()
            [[0.5]]
        """
        self._check_tensors(as_tensor)
        ids = token_ids(self.config, as_numpy(texts), self.vocabulary)
        text, clips = as_numpy(self._text(ids)), as_numpy(self._video(video))
        return self._result(score_features(self.config, text, ids, clips), as_tensor)

    def score_embeddings(self, texts: Any, embeddings: Any) -> np.ndarray:
        """Texts x stored features of clips -> the scores that `score` gives for the clips.

        Args:
            texts: see embed_text.
            embeddings: floats [B, E], or [B, T, E] with a Mug head: what embed_video returned, or
                `embed_videos(...).embeddings`, as they were or normalised.

        Returns:
            float32 [Q, B].

        Raises:
            InputError: see embed_text; embeddings of another model's sizes, or not finite.

        Example:
            >>> import stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     clip = session.read_clip("examples/motion/clips/blue_square_fades_in.mp4")
            ...     stored = session.embed_video(clip[None])
            ...     session.score_embeddings("a shape fades in", stored).round(1).tolist()
            [[0.5]]
        """
        features = np.asarray(as_numpy(embeddings))
        wanted, e = (3 if self.config.is_mug else 2), self.config.embed_dim
        if features.dtype.kind != "f" or features.ndim != wanted or features.shape[-1] != e:
            rows = "[B, T, E]" if self.config.is_mug else "[B, E]"
            raise InputError(
                f"embeddings are {features.dtype} {list(features.shape)}; this model's are floats "
                f"{rows} with E = {e}: give what its embed_video returned"
            )
        if not np.isfinite(features).all():
            raise InputError("embeddings hold NaN or infinite values: embed these videos again")
        ids = token_ids(self.config, as_numpy(texts), self.vocabulary)
        text = as_numpy(self._text(ids))
        return score_features(self.config, text, ids, features.astype(np.float32, copy=False))

    def read_clip(self, path: str | Path, decoder: str = "auto") -> np.ndarray:
        """Read one video file as this model wants it.

        Args:
            path: a video file.
            decoder: "auto" (PyAV), "pyav", "decord" (the authors'), "decord-as-is".

        Returns:
            uint8 [T, S, S, 3] RGB: T frames spread over the whole video, resized and cropped to the
            same bytes as the authors' code. `clip[None]` is a batch of one.

        Raises:
            InputError: no video, or one that is damaged where a frame is needed.
            MissingError: the decoder is not installed.

        Example:
            >>> import stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     session.read_clip("examples/motion/clips/green_bar_grows.mp4").shape
            (8, 64, 64, 3)
        """
        return read_config_clip(self.config, path, decoder)

    def prepare(
        self, frames: Any, *, order: str = "rgb", timestamps: Any = None, sample: bool = True
    ) -> np.ndarray:
        """Frames of a camera or a DataLoader -> one clip, as read_clip makes it of a file.

        Of all frames of a video, as its decoder gave them, it returns the bytes of read_clip.

        Args:
            frames: N frames in their order, uint8 [H, W, 3] of any size, each its own: a list, a
                collections.deque, an array or a tensor [N, H, W, 3].
            order: of the three channels, "rgb", or "bgr" as OpenCV has it.
            timestamps: seconds of each frame [N], where frames come at an uneven rate: the clip is
                then spread evenly by time, and not by frame number, as read_clip does.
            sample: False takes all N frames, 1 to 64, which were chosen before.

        Returns:
            uint8 [T, S, S, 3] RGB; T is `config.frames`, or N with sample=False. Fewer than T
            frames are repeated. `clip[None]` is a batch of one.

        Raises:
            InputError: no frames, grey ones, floats, four channels, channels first, timestamps that
                fall or are not N, an iterator, which may have no end.

        Example:
            >>> import numpy as np, stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     frames = [np.zeros((480, 640, 3), np.uint8)] * 100
            ...     session.prepare(frames, order="bgr").shape
            (8, 64, 64, 3)
        """
        spec = ClipSpec.of(self.config)
        return clip_of_frames(frames, spec, order=order, timestamps=timestamps, sample=sample)

    def stream(
        self,
        window: int | None = None,
        stride: int = 1,
        *,
        interval: float | None = None,
        at_once: int = 8,
        order: str = "rgb",
    ) -> Stream:
        """Windows that slide over frames which come one after the other, as from a camera.

        The trunk reads each frame alone, and only the branch mixes them. So a frame passes the
        trunk once, however many windows hold it; a window costs its frames' branch alone. The
        embeddings are those of embed_video for the same T frames.

        Args:
            window: T, 1 to the length of the model's time table; None: `config.frames`.
            stride: from the first frame of a window to that of the next, in frames.
            interval: seconds between two frames of a window. Of the frames that are pushed, the
                first at or after each such time is taken, others are skipped. Where several times
                pass between two frames, the second stands for all of them; after more than a whole
                window, or where the clock is set back by as much, the windows begin anew. None:
                every frame that is pushed is taken, and times are labels.
            at_once: most frames that pass the trunk together, 1 to 8. Frames wait until a window is
                full, or until there are so many. That is less work than one after the other; with 1
                each passes as it comes, so that the last frame of a window has less to wait for.
            order: of the three channels, "rgb", or "bgr" as OpenCV has it.

        Returns:
            A Stream: `push(frame, time)` returns the windows that a frame completes, `counts` says
            what became of the frames. It is for one thread at a time. With an interval a frame
            whose time is not after that of the one before is late, and left out.

        Raises:
            InputError: values out of range; a folder exported without --split, or without plans of
                both parts for engines trt and trt-rtx; an engine that does not run the two parts.

        Example:
            >>> import numpy as np, stan_infer as si
            >>> with si.open_session("examples/motion/motion.safetensors") as session:
            ...     stream = session.stream(stride=2, interval=0.1)
            ...     frame = np.zeros((64, 64, 3), np.uint8)
            ...     found = [w for i in range(100) for w in stream.push(frame, i / 30)]
            >>> len(found), found[0].embedding.shape
            (13, (64,))
        """
        from stan_infer.engines.stream import Stream

        return Stream(
            self.config,
            self._parts(),
            window=window,
            stride=stride,
            interval=interval,
            at_once=at_once,
            order=order,
        )

    def _parts(self) -> Parts:
        """The network in two parts, for `stream`."""
        raise InputError(
            f"engine {self.describe()['engine']} does not stream: use eager or triton with a "
            "checkpoint, or ort, openvino or trt with a folder that was exported with --split"
        )

    def _check_tensors(self, as_tensor: bool) -> None:
        if as_tensor and not self.has_tensors:
            raise InputError(
                f"as_tensor: engine {self.describe()['engine']} does not run in torch and has no "
                "tensors; leave it away, and torch.from_numpy makes one of the array"
            )

    def _result(self, values: Any, as_tensor: bool) -> Any:
        if not as_tensor:
            return as_numpy(values)
        import torch

        return torch.as_tensor(values, device=self._tensors_on)


def score_features(
    config: StanConfig, text: np.ndarray, ids: np.ndarray, video: np.ndarray
) -> np.ndarray:
    """Return the scores [Q, B] of features from embed_text, for `ids` [Q, L], and embed_video."""
    return head_scores(config.head, text, ids != 0, video, tau=config.mug_tau)


def read_config_clip(config: StanConfig, path: str | Path, decoder: str = "auto") -> np.ndarray:
    """Read one video as `config` wants it: uint8 [T, S, S, 3]."""
    return read_clip_info(path, ClipSpec.of(config, decoder=decoder)).pixels


def split_device(device: str, kinds: Sequence[str]) -> tuple[str, str]:
    """ "cuda:1" -> ("cuda", "1"), "cpu" -> ("cpu", ""); InputError for a word not in `kinds`."""
    kind, colon, index = device.partition(":")
    is_number = index.isascii() and index.isdigit()
    if kind not in kinds or (colon and (kind == "cpu" or not is_number)):
        raise InputError(
            f"device '{device}' is unknown{nearest(kind, list(kinds))} "
            f"({', '.join(kinds)}, {kinds[-1]}:1)"
        )
    return kind, index
