"""Engine "triton": the rewritten network on our kernels, replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.parts import CHUNK
from stan_infer.artefacts.precision import check_precision
from stan_infer.config import StanConfig
from stan_infer.engines.cuda_graphs import MAX_GRAPHS, CudaGraphs
from stan_infer.engines.inputs import check_video, token_ids
from stan_infer.engines.session import TEXT_CHUNK, Session
from stan_infer.engines.stream import Parts
from stan_infer.engines.torch_session import clip_tensor, only_uint8, torch_device
from stan_infer.engines.two_streams import TwoStreams
from stan_infer.errors import InputError, MissingError
from stan_infer.network.fold import fold_text, fold_video
from stan_infer.network.fused import text_tower, video_tower
from stan_infer.network.model import Stan
from stan_infer.system.packages import install_command

if TYPE_CHECKING:
    from stan_infer.network.kernel_ops import KernelOps

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
MAX_TEXT_GRAPHS = 4


class TritonSession(Session):
    """A Stan on our kernels; see engines.session.Session.

    For one thread and stream at a time: a call while another runs raises InputError, since both
    would write to the same static inputs and counters.
    """

    def __init__(
        self,
        model: Stan,
        *,
        device: str = "cuda",
        precision: str | None = None,
        scales: Mapping[str, float] | None = None,
        cuda_graphs: bool = True,
        two_streams: bool = True,
        kernels: frozenset[str] = frozenset(),
        cuda: Any = torch.cuda,
    ) -> None:
        """Fold the weights and put them on `device`; the caller's model is not changed.

        precision: fp16, bf16, or fp8 (e4m3 linears, the rest bf16); None is fp8 with `scales`, else
        fp16. scales: of the linears' inputs, by name (calibration_file.fp8_scales); fp8 needs them.
        cuda_graphs, two_streams, kernels (see KernelOps): for ablations. cuda: torch.cuda, or its
        stand-in in a test. Raises InputError and MissingError; nothing falls back.
        """
        check_here(device)
        precision = precision or ("fp16" if scales is None else "fp8")
        check_precision("engine triton", precision, PRECISIONS, "; fp32: --engine eager")
        _check_heads(model.config)
        if (precision == "fp8") != (scales is not None):
            raise InputError(
                "precision fp8 and a calibration go together: stan-infer calibrate CKPT "
                "--precision fp8 --videos DIR -o OUT, then --calibration OUT"
            )
        self._device = torch_device(device)
        if self._device.type == "cuda" and self._device.index is None:
            # The device of a tensor has a number, so a device without one would equal none.
            self._device = torch.device("cuda", cuda.current_device())
        self._tensors_on = self._device
        if precision == "fp8":
            _check_fp8(self._device)
        self._precision, self._scales, self._kernels = precision, scales, kernels
        self._cuda, self._use_graphs = cuda, cuda_graphs
        with cuda.device(self._device):
            self._branch = cuda.Stream() if two_streams else None
            self._upload = cuda.Stream()
        self._graphs = CudaGraphs(self._network, self._device, MAX_GRAPHS, cuda)
        self._text_graphs = CudaGraphs(
            self._text_network, self._device, MAX_TEXT_GRAPHS, cuda, dtype=torch.int64
        )
        self._streamed: _TritonParts | None = None  # the parts of these weights, once they stream
        self._busy = Lock()
        self.load(model)

    def load(self, model: Stan) -> None:
        """Replace the weights by those of `model`, and drop the CUDA graphs of earlier ones.

        Streams end: they hold rows of the earlier weights.
        """
        from stan_infer.network.kernel_weights import prepare

        self._clear_graphs()
        dtype = PRECISIONS[self._precision]
        self._config = model.config
        # As in an exported graph, 8 bits are made from fp32 weights: rounded once, not twice.
        exact = torch.float32 if self._scales is not None else dtype
        folded = fold_video(model, dtype=exact, base2=True)
        self._tower = prepare(folded, self._device, self._scales, dtype)
        self._words = None
        if model.config.has_text:
            self._words = prepare(fold_text(model, dtype=dtype, base2=True), self._device)
        # Counters of the spatial attention kernel, for the 64 clips that embed_video runs at once.
        heads = model.config.heads
        self._counters = torch.zeros(64 * heads, dtype=torch.int32, device=self._device)

    @property
    def config(self) -> StanConfig:
        """The model's config."""
        return self._config

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Compile the kernels and capture the graphs of these (B, T), so that no call waits."""
        s = self._config.image_size
        with self._alone(), torch.inference_mode(), self._cuda.device(self._device):
            for b, t in shapes:
                check_video(self._config, (b, t, s, s, 3), True)
                if self._use_graphs:
                    self._graphs.capture((b, t, s, s, 3))

    @torch.inference_mode()
    def _video(self, video: Any) -> Tensor:
        """Take uint8; do not wait for the GPU: the next batch can be uploaded meanwhile."""
        clips = clip_tensor(self._config, video, only_uint8("engine triton"))
        # Kernels are launched on the current device, wherever their tensors are.
        with self._alone(), self._cuda.device(self._device):
            parts = [self._embed(part) for part in clips.split(64)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def _text(self, texts: Any) -> Tensor:
        ids = torch.from_numpy(token_ids(self._config, texts)).to(self._device)
        found = []
        with self._alone(), self._cuda.device(self._device):
            for part in ids.split(TEXT_CHUNK):
                # Few graphs serve any number of texts: those that are added mean nothing.
                more = 2 ** (len(part) - 1).bit_length() - len(part) if self._use_graphs else 0
                padded = torch.nn.functional.pad(part.long(), (0, 0, 0, more))
                run = self._text_graphs if self._use_graphs else self._text_network
                end, tokens = run(padded)
                found.append((tokens if self.keeps_rows else end)[: len(part)].float())
        return torch.cat(found)

    def _text_network(self, ids: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import KernelOps

        assert self._words is not None  # token_ids has refused a model without
        return text_tower(KernelOps(len(ids), 1, self._counters), self._words, ids)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread, instead of mixing its clips with those of the first."""
        if not self._busy.acquire(blocking=False):
            raise InputError(
                "this session of engine triton is at work in another thread: open one per thread, "
                "or call it from one"
            )
        try:
            yield
        finally:
            self._busy.release()

    def describe(self) -> dict[str, Any]:
        """See Session.describe; "tiles" says if they were measured on this GPU family."""
        import triton

        from stan_infer.kernels.tuned import family, table

        name = family(self._device)
        return {
            "engine": "triton",
            "device": str(self._device),
            "precision": self._precision,
            **({"linears_in_8_bits": len(self._scales)} if self._scales is not None else {}),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "tiles": f"{name}: {'measured' if table()['measured'].get(name) else 'start values'}",
            **self._graphs.describe(),
            "cuda_graphs_of_texts": self._text_graphs.describe()["cuda_graphs"],
            **({"cuda_graphs_of_streams": self._streamed.shapes()} if self._streamed else {}),
        }

    def _parts(self) -> Parts:
        """See Session.stream; all streams of these weights share their CUDA graphs."""
        if self._streamed is None:
            self._streamed = _TritonParts(self)
        return self._streamed

    def _free(self) -> None:
        self._clear_graphs()
        del self._tower, self._words

    def _clear_graphs(self) -> None:
        self._graphs.clear()
        self._text_graphs.clear()
        if self._streamed is not None:
            self._streamed.clear()
            self._streamed = None

    def _embed(self, clips: Tensor) -> Tensor:
        clips = self._up(clips)
        mean, frames = self._graphs(clips) if self._use_graphs else self._network(clips)
        return frames if self.keeps_rows else mean

    def _up(self, pixels: Tensor) -> Tensor:
        """Pixels, contiguous on the device, for the current stream."""
        cuda = self._cuda
        if pixels.device != self._device:
            # From pinned memory and on another stream, so that it overlaps the last call's work.
            with cuda.stream(self._upload):
                if cuda.is_available() and not pixels.is_cuda:
                    pixels = pixels.contiguous().pin_memory()
                pixels = pixels.to(self._device, non_blocking=True)
            cuda.current_stream().wait_stream(self._upload)
            if pixels.is_cuda:
                pixels.record_stream(cuda.current_stream())
        return pixels.contiguous()

    def _network(self, clips: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import KernelOps

        ops = KernelOps(clips.shape[0], clips.shape[1], self._counters, kernels=self._kernels)
        schedule = TwoStreams(self._branch, self._cuda) if self._branch is not None else None
        return video_tower(ops, self._tower, clips, schedule)


class _TritonParts(Parts):
    """Parts of prepared weights: a CUDA graph per number of frames, and one per T of a window.

    Rows stay on the device, in the dtype of the weights; see network.kernel_ops.encode_trunk.
    """

    def __init__(self, session: TritonSession) -> None:
        self._session, self._weights = session, session._tower
        self.windows, self.at_once = (1, session.config.max_frames), CHUNK
        device, cuda, k = session._device, session._cuda, session.config.branch_layers
        self._dtype = self._weights.patches.table.dtype
        self._trunks = CudaGraphs(self._run_trunk, device, MAX_GRAPHS, cuda)
        self._branches = CudaGraphs(
            self._run_branch, device, MAX_GRAPHS, cuda, inputs=k, dtype=self._dtype
        )

    def check_open(self) -> None:
        self._session._check_open()
        if self._session._streamed is not self:
            raise InputError(
                "this session's weights were replaced, and the stream holds rows of the earlier "
                "ones: start another with session.stream"
            )

    def warm_up(self, sizes: Iterable[int], window: int) -> None:
        side = self._session.config.image_size
        for count in sizes:
            self.trunk(np.zeros((count, side, side, 3), np.uint8))
        self.branch([rows.zero_()[None] for rows in self.room(window)])

    @torch.inference_mode()
    def trunk(self, frames: np.ndarray) -> Sequence[Tensor]:
        with self._at_work() as session:
            pixels = session._up(torch.from_numpy(frames))
            return self._trunks(pixels) if session._use_graphs else self._run_trunk(pixels)

    @torch.inference_mode()
    def branch(self, rows: Sequence[Tensor]) -> Tensor:
        with self._at_work() as session:
            run = self._branches if session._use_graphs else self._run_branch
            mean, frames = run(*(x.contiguous() for x in rows))
            return frames if session.keeps_rows else mean

    def room(self, frames: int) -> list[Tensor]:
        session, table = self._session, self._weights.patches.table
        shape = frames, len(table) + 1, table.shape[1]
        return [
            torch.empty(shape, dtype=self._dtype, device=session._device)
            for _ in range(session.config.branch_layers)
        ]

    def clear(self) -> None:
        """Drop the CUDA graphs."""
        self._trunks.clear()
        self._branches.clear()

    def shapes(self) -> dict[str, list[Any]]:
        """Of the graphs, the last used last: numbers of frames, and [B, T] of windows."""
        trunks, branches = (g.describe()["cuda_graphs"] for g in (self._trunks, self._branches))
        return {"trunk": [frames for frames, _ in trunks], "branch": branches}

    @contextmanager
    def _at_work(self) -> Iterator[TritonSession]:
        session = self._session
        with session._alone(), session._cuda.device(session._device):
            yield session

    def _run_trunk(self, frames: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import encode_trunk

        return encode_trunk(self._ops(1, len(frames)), self._weights, frames)

    def _run_branch(self, *rows: Tensor) -> Sequence[Tensor]:
        from stan_infer.network.kernel_ops import encode_branch

        return encode_branch(self._ops(*rows[0].shape[:2]), self._weights, rows)

    def _ops(self, batch: int, frames: int) -> KernelOps:
        from stan_infer.network.kernel_ops import KernelOps

        session = self._session
        return KernelOps(batch, frames, session._counters, kernels=session._kernels)


def open_triton(
    source: str | Path | Stan,
    *,
    settings: Mapping[str, Any] | None = None,
    calibration: str | Path | None = None,
    **options: Any,
) -> TritonSession:
    """Load a checkpoint, unless it is a Stan already; options: see TritonSession.

    calibration: the calibration.json of this checkpoint, or its folder, in place of `scales`.
    """
    # Not for a Stan that is given: JSON schemas and weight formats need packages of their own.
    from stan_infer.artefacts.calibration_file import fp8_scales, read_calibration
    from stan_infer.checkpoints.load import load_model

    if calibration is not None:
        if options.get("scales") is not None:
            raise InputError("give a calibration or its scales, not both")
        read_calibration(calibration)  # a bad calibration is reported before weights are read
    check_here(options.get("device", "cuda"))
    model = load_model(source, settings) if isinstance(source, (str, Path)) else source
    if calibration is not None:
        if not isinstance(source, (str, Path)):
            raise InputError("a calibration is compared with a checkpoint's file: give its path")
        weights = (settings or {}).get("weights")
        options["scales"] = fp8_scales(calibration, source, model.config, weights)
    return TritonSession(model, **options)


def check_here(device: str) -> None:
    """Raise MissingError, with the reason and what to do, unless the kernels run on `device`."""
    reason = unavailable(device)
    if reason:
        raise MissingError(f"engine triton: {reason}; use --engine eager or ort")


def _check_heads(config: StanConfig) -> None:
    from stan_infer.kernels.cls_attention import MAX_HEADS
    from stan_infer.kernels.tiles import check_head

    try:
        check_head(config.width, config.heads)
    except ValueError as e:
        raise InputError(f"engine triton: {e}; use --engine eager") from e
    if config.heads > MAX_HEADS:
        raise InputError(
            f"engine triton takes at most {MAX_HEADS} heads, this model has {config.heads}: "
            "use --engine eager"
        )


def _check_fp8(device: torch.device) -> None:
    from stan_infer.kernels.tuned import family, tiles

    if not tiles("fp8_linear", family(device)):
        raise MissingError(
            f"{torch.cuda.get_device_name(device)} has no 8-bit floats (sm_89 or newer has); use "
            "--precision fp16 or bf16"
        )


def unavailable(device: str = "cuda") -> str | None:
    """Return one sentence that says why the kernels cannot run on `device`, None if they can."""
    try:
        import triton
    except ImportError as e:
        return f"{e.name} is not installed: {install_command('gpu')}"
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        return (
            f"torch {torch.__version__} (built for CUDA {built}) with triton {triton.__version__} "
            "finds no GPU"
        )
    if not device.startswith("cuda"):
        return f"the kernels run on NVIDIA GPUs, not on device '{device}': give --device cuda"
    index, here = torch.device(device).index or 0, torch.cuda.device_count()
    if index >= here:
        return f"device '{device}' is not here: {here} GPUs found"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        return f"{name} is sm_{major}{minor}; the kernels need sm_80 (Ampere) or newer"
    return None
