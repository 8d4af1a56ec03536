"""An exported folder: manifest.json, graphs and other files, and the hash of each.

The manifest is written last, so a folder that has one is complete. A folder may come from a
stranger: sizes are bounded, names may not lead outside the folder, and a file's hash is compared
before the file is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stan_infer.config import StanConfig
from stan_infer.errors import CheckError, InputError
from stan_infer.system import temporary
from stan_infer.system.json_file import checked, read_object
from stan_infer.system.outside_file import open_regular, stays_inside

if TYPE_CHECKING:
    from stan_infer.artefacts.manifest import FileEntry, Manifest, Port

MANIFEST = "manifest.json"
# 1.0: not every graph noted its config, and the hash was of a JSON text whose numbers only Python
# spells. 1.1: every graph notes it, and a copy of a fact of the model may not be left out.
SCHEMA = "1.1"
# TensorRT's plans. They are added and rebuilt after the export, so the manifest does not list them;
# the sidecar beside each has its hash.
ENGINES_FOLDER = "engines"
_MAX_MANIFEST = 2**20  # an export writes under 10 KB; a MiB of objects takes half a second
_MAX_ENGINE_FILES = 1000
_AGAIN = "export the checkpoint again"


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of an exported folder, as its manifest describes it."""

    file: str
    role: str  # "video", "text", "trunk", "branch", "preprocess" or "score"
    precision: str
    opset: int
    inputs: tuple[Port, ...]  # name, dtype, shape (ints or dimension names)
    outputs: tuple[Port, ...]
    dims: dict[str, tuple[int, int]]  # dimension name -> smallest, largest
    external_data: tuple[str, ...] = ()  # files in the folder that hold its weights


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported folder whose manifest was checked (manifest.Manifest) and whose files are there.

    Open its files only through `file`, `read`, `copy` and `held`.
    """

    path: Path
    config: StanConfig
    graphs: tuple[Graph, ...]
    manifest: Manifest

    def graph(self, role: str) -> Graph | None:
        """Return the graph of that role, or None."""
        return next((g for g in self.graphs if g.role == role), None)

    def has(self, name: str) -> bool:
        """Whether the manifest lists a file of that name."""
        return name in self.manifest["files"]

    def file(self, name: str) -> Path:
        """Return the path of a listed file that lies in the folder and is not a link.

        Raises InputError for any other name. The file may be replaced after this call: use `read`
        or `held` where that matters.
        """
        path, _ = self._entry(name)
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, after comparing their size and hash.

        Raises InputError for a name that is not listed or another size, CheckError for another
        hash.
        """
        path, entry = self._entry(name)
        with _open(path) as f:
            data = f.read(entry["bytes"] + 1)
        if len(data) != entry["bytes"]:
            raise _other_size(path, len(data), entry["bytes"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _changed(path)
        return data

    def copy(self, name: str, target: Path) -> None:
        """Copy a listed file to `target`; raises as `read` does, but after `target` was written."""
        path, entry = self._entry(name)
        digest, left = hashlib.sha256(), entry["bytes"]
        with _open(path) as f, target.open("wb") as out:
            while left and (chunk := f.read(min(left, 2**20))):
                digest.update(chunk)
                out.write(chunk)
                left -= len(chunk)
            left += len(f.read(1))
        if left or digest.hexdigest() != entry["sha256"]:
            raise _changed(path)

    @contextmanager
    def held(self, *names: str) -> Iterator[list[Path]]:
        """Yield paths of listed files for a library that opens them itself.

        Sizes and hashes are compared first, and at the end it is checked that no file was changed
        meanwhile. On Linux, the path of a single file is /proc/self/fd/N, which stays the file that
        was hashed even if another one takes its name. Raises as `read` does, and CheckError at the
        end for a file that was changed.
        """
        with ExitStack() as stack:
            paths, before = [], {}
            for name in names:
                path, entry = self._entry(name)
                f = stack.enter_context(_open(path))
                before[path] = _identity(os.fstat(f.fileno()))
                _compare(path, f, entry)
                opened = Path(f"/proc/self/fd/{f.fileno()}")
                paths.append(opened if len(names) == 1 and opened.exists() else path)
            yield paths
            for path, was in before.items():
                try:
                    now = _identity(os.stat(path, follow_symlinks=False))
                except OSError:
                    now = ()
                if now != was:
                    raise CheckError(f"{path} was changed while it was read: try once more")

    def _entry(self, name: str) -> tuple[Path, FileEntry]:
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise InputError(
                f"exported folder {self.path}: {name[:80]!r} has no hash in {MANIFEST}"
            )
        return inside(self.path, name), entry


def inside(folder: Path, name: str) -> Path:
    """Return the path of a regular file in a folder.

    Raises InputError for a name that leads outside, a missing file, or a link on the way to it.
    """
    _check_name(folder, name)
    path = folder / name
    for on_the_way in (path, *list(path.parents)[: name.count("/")]):
        if on_the_way.is_symlink():
            raise is_a_link(folder, on_the_way)
    if not path.is_file():
        raise InputError(f"exported folder {folder}: {name} is missing; {_AGAIN}")
    return path


def is_a_link(folder: Path, path: Path) -> InputError:
    """The error for a link in a folder: what it leads to need not be what was hashed."""
    return InputError(
        f"exported folder {folder}: {path.relative_to(folder).as_posix()[:80]!r} is a link, which "
        "may lead out of the folder; put the file itself in its place"
    )


def _check_name(folder: Path, name: str) -> None:
    if not stays_inside(name):
        raise InputError(
            f"exported folder {folder}: {MANIFEST} names the file {name[:80]!r}, which is not "
            f"inside the folder; {_AGAIN}"
        )


def why_keep(folder: Path) -> str | None:
    """Say why an export may not replace `folder`: it is not, or not only, an earlier export.

    None where it is an earlier export and holds nothing else.
    """
    from stan_infer.artefacts.manifest import Earlier

    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST} of an earlier export"
    try:
        manifest = checked(read_manifest(folder), Earlier, MANIFEST)
    except InputError as e:
        return str(e)
    if manifest["tool"]["name"] != "stan_infer":
        return f"its {MANIFEST} was not written by stan_infer"
    known = {MANIFEST, *manifest["files"]}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_engine_file(name):
            continue
        if name not in known and not any(k.startswith(f"{name}/") for k in known):
            return f"{name[:80]} is not part of the earlier export in it"
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Add size and hash of every file in `folder` to `manifest` and write it.

    Call it when every other file has been written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"schema": SCHEMA, **manifest, "files": files})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as our JSON files have it: keys sorted, UTF-8, no NaN or infinity."""
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def check_schema(values: Mapping[str, Any], known: str, name: str, hint: str) -> None:
    """Raise InputError unless the "schema" of a JSON object has the major version of `known`."""
    schema = str(values.get("schema"))[:20]
    if schema.split(".")[0] != known.split(".")[0]:
        raise InputError(f"{name} has schema {schema!r}; this version reads {known}{hint}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return manifest.json, not yet checked; InputError if it is missing or no JSON object."""
    path = folder / MANIFEST
    if not os.path.lexists(folder):
        # A run that was killed may have left the folder under its temporary name.
        temporary.clear(folder.absolute().parent)
    if not os.path.isfile(path):
        raise InputError(
            f"{folder} is not an exported folder: it has no {MANIFEST}; make one with "
            "stan-infer export CHECKPOINT -o FOLDER"
        )
    return read_object(path, _MAX_MANIFEST)


def check_fused(artefact: Artefact, graph: Graph) -> None:
    """Raise InputError unless a graph of the folder is the fused one in fp32."""
    entry = next(g for g in artefact.manifest["graphs"] if g["file"] == graph.file)
    if graph.precision != "fp32" or entry.get("graph") != "fused":
        raise InputError(
            f"{artefact.path} is {graph.precision}, graph {str(entry.get('graph'))[:20]}; "
            "calibration starts from the fused graph in fp32: give the checkpoint, or "
            "stan-infer export CHECKPOINT -o FOLDER"
        )


def read_artefact(
    path: str | Path, *, check_hashes: bool = True, held: Collection[str] = ()
) -> Artefact:
    """Read and check an exported folder; with check_hashes, compare the hash of every file too.

    held: roles of graphs that the caller opens with Artefact.held, which compares their hashes.
    Raises InputError for a folder without a manifest, an unknown schema, values of another type or
    out of range, names that lead outside the folder, missing files, other sizes, or files that
    nothing uses; CheckError for another hash.
    """
    from stan_infer.artefacts.manifest import Manifest, check_manifest

    folder = Path(path)
    raw = read_manifest(folder)
    check_schema(raw, SCHEMA, f"exported folder {folder}", f": {_AGAIN}")
    try:
        manifest = checked(raw, Manifest, MANIFEST)
        for name in manifest["files"]:
            _check_name(folder, name)
        config = StanConfig.from_dict(manifest["model"])
        check_manifest(manifest, config)
        for name in manifest["files"]:
            inside(folder, name)
    except InputError as e:
        raise e if str(folder) in str(e) else InputError(f"exported folder {folder}: {e}") from e
    graphs = tuple(_graph(g) for g in manifest["graphs"])
    for name, entry in manifest["files"].items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise _other_size(folder / name, size, entry["bytes"])
    _refuse_unlisted(folder, manifest)
    if check_hashes:
        later = {n for g in graphs if g.role in held for n in (g.file, *g.external_data)}
        for name, entry in manifest["files"].items():
            if name not in later:
                with _open(folder / name) as f:
                    _compare(folder / name, f, entry)
    return Artefact(folder, config, graphs, manifest)


def is_engine_file(name: str) -> bool:
    """Whether a name is that of engines/, or of a plan or sidecar in it, finished or being built.

    The manifest lists none of these. Plans are built in a folder of `temporary`.
    """
    plan = r"[A-Za-z0-9_.-]+\.plan(\.json)?"
    pattern = rf"{ENGINES_FOLDER}(/{plan}|/{temporary.NAME}(/{temporary.LOCK}|/new\.(plan|json))?)?"
    return bool(re.fullmatch(pattern, name)) and ".." not in name


def _graph(g: Any) -> Graph:
    return Graph(
        g["file"],
        g["role"],
        g["precision"],
        g["opset"],
        tuple(g["inputs"]),
        tuple(g["outputs"]),
        {name: (low, high) for name, (low, high) in g["dims"].items()},
        tuple(g.get("external_data") or ()),
    )


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Refuse files without a hash: a graph may read weights from any file beside it."""
    files = manifest["files"]
    listed = {MANIFEST, *files, *(str(above) for n in files for above in PurePosixPath(n).parents)}
    engine_files = 0
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        engine_files += is_engine_file(name)
        if engine_files > _MAX_ENGINE_FILES:
            raise InputError(
                f"exported folder {folder}: {ENGINES_FOLDER}/ holds more than {_MAX_ENGINE_FILES} "
                "files; take out those that are not used"
            )
        if path.is_symlink():
            raise is_a_link(folder, path)
        if name not in listed and not is_engine_file(name):
            raise InputError(
                f"exported folder {folder}: {name[:80]!r} is not listed in {MANIFEST}; take it out "
                "of the folder"
            )


def _open(path: Path) -> BufferedReader:
    """Open a regular file; a link is refused, even one that took its place a moment ago."""
    try:
        return open_regular(path, follow=False)[0]
    except (InputError, OSError) as e:
        why = getattr(e, "strerror", None) or e
        raise InputError(f"{path} cannot be read: {why}; {_AGAIN}") from e


def _identity(s: os.stat_result) -> tuple[int, ...]:
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def _compare(path: Path, file: BufferedReader, entry: FileEntry) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        raise _other_size(path, size, entry["bytes"])
    if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
        raise _changed(path)


def _other_size(path: Path, size: int, wanted: int) -> InputError:
    return InputError(
        f"exported folder {path.parent}: {path.name} has {size} bytes, {MANIFEST} says {wanted}: "
        "incomplete copy? Copy it again"
    )


def _changed(path: Path) -> CheckError:
    return CheckError(
        f"exported folder {path.parent}: the hash of {path.name} is not the one in {MANIFEST}: the "
        f"file was changed after the export; {_AGAIN}"
    )
