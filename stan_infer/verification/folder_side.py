"""An exported folder as a side of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.calibration_file import CALIBRATION, read_calibration
from stan_infer.artefacts.config_note import CONFIG_KEY, is_of_config
from stan_infer.artefacts.folder import (
    MANIFEST,
    inside,
    is_a_link,
    is_engine_file,
    read_manifest,
    sha256,
)
from stan_infer.artefacts.manifest import Manifest, Pair, Triple, check_manifest
from stan_infer.artefacts.npz_file import label_fields, read_npz
from stan_infer.artefacts.onnx_file import read_graph
from stan_infer.config import StanConfig
from stan_infer.engines.bare_graph import open_bare
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.open import open_session
from stan_infer.engines.session import Session
from stan_infer.errors import InputError
from stan_infer.system.json_file import checked
from stan_infer.system.packages import require
from stan_infer.text.templates import Templates, read_templates
from stan_infer.text.tokenizer import text_rules, tokenize
from stan_infer.text.vocabulary import END, START
from stan_infer.verification.graph_side import ROLES, form, tower, usable
from stan_infer.verification.side import (
    Arrays,
    Claims,
    Form,
    Side,
    score_arrays,
    to_input,
    tower_of,
)
from stan_infer.video.clip import RULES, check_rules, resize_crop, sample_indices

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

_MAX_LABELS = 256 * 2**20  # bytes of a file of labels, and characters of their texts


class Folder(Side):
    """An exported folder as its manifest describes it to a client.

    Unlike read_artefact this also opens a folder that was edited or damaged, so that `verify` can
    say which step is wrong. Hashes are not compared here but by `damage`.
    """

    kind = "folder"
    config: StanConfig

    def __init__(self, folder: Path, engine: str) -> None:
        """Read the manifest. Graphs are opened in `engine`, the video graph at once."""
        self._folder, self.name, self.engine = folder, str(folder), engine
        self._manifest = read_manifest(folder)
        self.config = StanConfig.from_dict(self._at("model", kind=dict))
        self.image_size = self.config.image_size
        # The largest size in bytes of each file that may be opened; no other file is.
        self._limits: dict[str, int] = {}
        self._wrong: InputError | None = None  # the manifest's error, if it has one
        try:
            self._limits = check_manifest(checked(self._manifest, Manifest, MANIFEST), self.config)
        except InputError as e:
            self._wrong = e
        entries = [g for g in self._at("graphs", kind=list) if isinstance(g, dict)]
        self._graphs = {str(g.get("role")): g for g in reversed(entries)}
        self._opened: dict[str, OpenGraph | InputError] = {}
        tower = self._graphs.get("video") or self._graphs.get("text") or {}
        self.precision = str(tower.get("precision"))
        if "video" in self._graphs:
            opened = self._open("video")
            self.form = form(opened) if isinstance(opened, OpenGraph) else self._manifest_form()

    def lacks(self, step: str) -> str | None:
        if step in ("decode", "resize", "input", "video") and "video" not in self._graphs:
            return "no video graph"
        if step in ("ids", "text") and "text" not in self._graphs:
            return "no text graph"
        if step == "ids" and "tokenizer.json" not in self._limits:
            return "no tokenizer.json"
        if step == "score" and not {"video", "text"} <= set(self._graphs):
            return "only one tower"
        return None

    def limits(self, axis: str) -> tuple[int, int]:
        entry = self._graphs.get(tower_of(axis), {})
        name = "batch" if axis == "texts" else axis
        low, high = self._at("dims", name, kind=Pair, of=entry)
        if not 1 <= low <= high <= (64 if axis == "frames" else 4096):
            raise InputError(f"{MANIFEST}: {axis} {low} to {high} is out of range")
        return low, high

    def sampled(self) -> int:
        return self._at("preprocess", "sampling", "frames", kind=int)

    def indices(self, total: int, frames: int) -> np.ndarray:
        # A client refuses a rule that it does not know, and so does this one.
        self._check_rules("sampling")
        return sample_indices(total, frames)

    def pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self._check_rules("resize", "crop")
        said = self._at("preprocess", "resize", "short_side", kind=int)
        if said != self.config.short_side:
            raise InputError(
                f"{MANIFEST}: preprocess.resize.short_side is {said}, but model.short_side is "
                f"{self.config.short_side}"
            )
        # Older exports have no preprocess.onnx; the manifest says then to which side to resize.
        if "preprocess" not in self._graphs:
            return resize_crop(images, said, self.config.image_size)
        opened = usable(self._open("preprocess"))
        signature = opened.signature()
        output = next(iter(signature.outputs))
        return opened.run({next(iter(signature.inputs)): np.stack(images)}, [output])[output]

    def _check_rules(self, *keys: str) -> None:
        said = self._at("preprocess", kind=dict[str, Any])
        check_rules(said, f"{MANIFEST}: preprocess", {key: RULES[key] for key in keys})

    def prepare(self, pixels: np.ndarray, form: Form | None = None) -> np.ndarray:
        mean, std = (self._at("preprocess", k, kind=Triple) for k in ("mean", "std"))
        if not all(1e-3 <= s <= 1e4 for s in std):
            raise InputError(f"{MANIFEST}: preprocess.std is {std}; allowed are 0.001 to 10000")
        color = self._at("preprocess", "color", kind=str)
        if color not in ("RGB", "BGR"):
            raise InputError(f"{MANIFEST}: preprocess.color is {color[:20]!r}, not RGB or BGR")
        dtype = self._manifest_form().dtype
        folded = self._at("preprocess", kind=dict[str, Any]).get("folded_in_graph")
        if folded not in (None, dtype == "uint8"):  # early exports did not say it
            raise InputError(
                f"{MANIFEST}: preprocess.folded_in_graph is {str(folded)[:20]}, which contradicts "
                f"input_dtype {dtype[:20]}"
            )
        return to_input(pixels, form or self._manifest_form(), mean, std, color)

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        known = text_rules(3)
        for key in ("clean", "truncation"):
            if self._at("text", key, kind=list[str] | str) != known[key]:
                raise InputError(f"{MANIFEST}: this version does not know the rule in text.{key}")
        length = self._at("text", "context_length", kind=int)
        rows = tokenize(texts, length, vocabulary=self._file("tokenizer.json"))
        # The rules say where the special tokens stand, the manifest which ids they have.
        places = [rows == n for n in (START, END, 0)]
        for where, key in zip(places, ("start", "end", "padding"), strict=True):
            number = self._at("text", key, kind=int)
            if not 0 <= number < max(1, self.config.vocab_size):
                raise InputError(f"{MANIFEST}: text.{key} is {number}, not in the vocabulary")
            rows[where] = number
        return rows

    def video(self, tensor: np.ndarray) -> Arrays:
        return tower(self._open("video"), "video", tensor)

    def text(self, ids: np.ndarray) -> Arrays:
        return tower(self._open("text"), "text", np.asarray(ids, np.int32))

    def score(self, text: Arrays, ids: np.ndarray, video: Arrays) -> np.ndarray:
        mask = ids != self._at("text", "padding", kind=int)
        if "score" not in self._graphs:
            return score_arrays(self.config, text, mask, video)
        tokens, frames = text["token_embeds"], video["frame_embeds"]
        feeds = {"token_embeds": tokens, "input_ids": ids.astype(np.int32), "frame_embeds": frames}
        return usable(self._open("score")).run(feeds)["scores"] / self.config.temperature

    def labels(self) -> tuple[list[str], Templates, Arrays] | None:
        if not isinstance(self._manifest.get("labels"), dict):
            return None
        files = [self._file(self._at("labels", k, kind=str)) for k in ("file", "embeddings")]
        if any(f.stat().st_size > _MAX_LABELS for f in files):
            raise InputError(f"a file of labels has more than {_MAX_LABELS} bytes")
        entry = self._at("labels", kind=dict)
        several = self._at("templates", kind=list, of=entry) if "templates" in entry else None
        given = several or [self._at("template", kind=str, of=entry)]
        try:
            lines = files[0].read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"the labels cannot be read: {str(e)[:200]}") from e
        sentences = read_templates(given).sentences
        if sum(len(s) + len(line) for line in lines for s in sentences) > _MAX_LABELS:
            raise InputError(f"the labels' texts have more than {_MAX_LABELS} characters")
        arrays = read_npz(files[1], label_fields(self.config, len(lines)))
        return lines, Templates(sentences, sentences), arrays

    def golden(self) -> tuple[list[str], Path]:
        """The texts of the golden data, and their file. InputError where there are none."""
        if self._manifest.get("golden") is None:
            raise InputError(f"{self.name} has no golden data: export the checkpoint again")
        entry = self._at("golden", kind=dict)
        return checked(entry.get("texts") or [], list[str], "golden.texts"), self._file(
            self._at("golden", "file", kind=str)
        )

    def golden_clip(self) -> Path | None:
        """The video of the golden data; None: an earlier version exported the folder."""
        name = self._at("golden", kind=dict).get("clip")
        return None if name is None else self._file(name)

    @property
    def golden_tolerance(self) -> float:
        """What the manifest allows the video tower on the golden clips."""
        return self._at("golden", "video_tolerance", kind=float)

    def class_outputs(self, tensor: np.ndarray) -> Arrays:
        opened = usable(self._open("video"))
        names = [n for n in ("scores", "probabilities") if n in opened.signature().outputs]
        return opened.run({"video": tensor}, names) if names else {}

    @contextmanager
    def opened_session(self) -> Iterator[Session]:
        """A session of the folder, in the engine of this side."""
        with open_session(self.name, self.engine) as session:
            yield session

    def part_windows(self) -> tuple[int, int]:
        """The smallest and largest window of the parts."""
        entry = self._graphs.get("branch")
        return (1, 1) if entry is None else self._at("dims", "frames", kind=Pair, of=entry)

    def graph_path(self, role: str) -> Path | None:
        return self._file(self._graphs[role].get("file")) if role in self._graphs else None

    def claims(self, role: str) -> Claims:
        entry = self._graphs.get(role, {})
        fixed: dict[str, int | None] = {"batch": None, "frames": None}
        for axis in fixed if role == "video" else ():
            low, high = Folder.limits(self, axis)  # a plan's are those of its profile
            fixed[axis] = low if low == high else None
        return Claims(
            self._at("precision", kind=str, of=entry),
            entry.get("writer"),
            fixed["batch"],
            fixed["frames"],
            is_fused=entry.get("graph") == "fused",
        )

    def calibration(self) -> Record | None:
        return read_calibration(self._file(CALIBRATION)) if CALIBRATION in self._limits else None

    def exact_weights(self, role: str, input: str) -> tuple[Any, StanConfig] | None:
        entry = self._graphs.get(role, {})
        if role != "video" or (entry.get("precision"), entry.get("graph")) != ("fp32", "fused"):
            return None
        if (input == "uint8") != (self.form.dtype == "uint8"):
            return None
        for package in ("torch", "onnx"):
            require(package, "recomputing a graph in another precision", "cpu")
        from stan_infer.artefacts.folder import read_artefact
        from stan_infer.export.read_weights import read_weights

        return read_weights(read_artefact(self._folder, check_hashes=False)), self.config

    def damage(self) -> list[str] | None:
        wrong = [str(self._wrong)] if self._wrong else []
        for name in self._limits:
            entry = self._manifest["files"][name]
            try:
                path = self._file(name)
                if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                    wrong.append(f"{name} changed after the export")
            except InputError as e:
                wrong.append(str(e))
        quant = self._graphs.get("video", {}).get("quant")
        told = quant.get("calibration_sha256") if isinstance(quant, dict) else None
        held = self._manifest.get("files") or {}
        entry = held.get(CALIBRATION) if isinstance(held, dict) else None
        if told and (not isinstance(entry, dict) or entry.get("sha256") != told):
            how = "is not the one" if entry else "is missing: it is the one"
            wrong.append(f"{CALIBRATION} {how} that the video graph was made from")
        files = (p for p in self._folder.rglob("*") if p.is_symlink() or not p.is_dir())
        found = {p.relative_to(self._folder).as_posix() for p in files}
        wrong += [
            str(is_a_link(self._folder, self._folder / n))
            if (self._folder / n).is_symlink()
            else f"{n[:80]} is not in {MANIFEST}"
            for n in sorted(found - {MANIFEST, *self._limits})
            if not self._wrong and not is_engine_file(n)
        ]
        for role in ROLES:
            try:
                graph = self.graph_path(role)
                noted = read_graph(graph).metadata.get(CONFIG_KEY) if graph else None
            except InputError as e:
                wrong.append(str(e))
                continue
            if graph and not is_of_config(noted, self._manifest):
                wrong.append(f"the {role} graph was written for another config than {MANIFEST}'s")
        return wrong

    def _manifest_form(self) -> Form:
        return Form(*(self._at("preprocess", k, kind=str) for k in ("input_dtype", "layout")))

    def _file(self, name: Any) -> Path:
        """Path of a listed file. InputError if it is larger than a model of this config needs."""
        if self._wrong is not None:
            raise self._wrong
        if name not in self._limits:
            raise InputError(f"{str(name)[:80]!r} has no hash in {MANIFEST}")
        path = inside(self._folder, name)
        if (size := path.stat().st_size) > self._limits[name]:
            raise InputError(f"{name} has {size} bytes; allowed are {self._limits[name]}")
        return path

    def _at(self, *keys: str, kind: Any, of: Any = None) -> Any:
        """The value under nested keys of the manifest, or of `of`, checked to be of a type."""
        value = self._manifest if of is None else of
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise InputError(f"{MANIFEST}: {'.'.join(keys)} is missing")
        return checked(value, kind, f"{MANIFEST}: {'.'.join(keys)}")

    def _open(self, role: str, engine: str = "") -> OpenGraph | InputError:
        """Open a graph once; engine: by default the folder's. An error is kept like a graph."""
        if role not in self._opened:
            entry = self._graphs[role]
            try:
                path = self._file(entry.get("file"))
                data = [self._file(name).name for name in entry.get("external_data") or []]
                self._opened[role] = open_bare(path, engine or self.engine, data, self.config, role)
            except InputError as e:
                self._opened[role] = e
        return self._opened[role]
