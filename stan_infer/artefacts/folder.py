"""An exported folder: manifest.json, model files, and the hash of each.

The manifest is written last: where it is, the folder is complete. It comes from strangers: sizes
are bounded, names stay inside the folder, hashes are compared before a file is opened.
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
SCHEMA = "1.0"
ENGINES_FOLDER = "engines"  # plans, which come and go: each has a sidecar with its own hash
CONFIG_KEY = "stan_infer.config_sha256"  # in every graph's metadata
_MAX_MANIFEST = 2**20  # an export writes under 10 KB; a MiB of objects takes half a second
_MAX_ENGINE_FILES = 1000
_AGAIN = "export the checkpoint again"


@dataclasses.dataclass(frozen=True)
class Graph:
    """One model file of an artefact, as its manifest describes it."""

    file: str
    role: str  # "video" or "text"
    precision: str
    opset: int
    inputs: tuple[Port, ...]  # name, dtype, shape (ints or dimension names)
    outputs: tuple[Port, ...]
    dims: dict[str, tuple[int, int]]  # dimension name -> smallest, largest
    external_data: tuple[str, ...] = ()  # names in the folder, of which each has a hash


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A folder whose manifest was checked (manifest.Manifest) and whose files are there.

    Its files are opened through `file`, `read`, `copy` and `held`, and in no other way.
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
        """Return the path of a listed file that lies in the folder and is no link.

        Raises InputError for another name. What is read there later may be something else: use
        `read` or `held` where that matters.
        """
        path, _ = self._entry(name)
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, read once, whose size and hash are the manifest's.

        Raises InputError for another name or size, CheckError for other content.
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
        """Write a listed file's content to `target`; raises what `read` does, at the end."""
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
        """Paths of listed files, for what opens them itself; nothing may change until the end.

        Their sizes and hashes are compared first. The path of a single file is that of the file
        which was hashed and stays open, on Linux, whatever takes its name meanwhile. Raises what
        `read` does, and CheckError at the end where a file is no longer the one that was compared.
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
            raise InputError(f"artefact {self.path}: {name[:80]!r} has no hash in {MANIFEST}")
        return inside(self.path, name), entry


def inside(folder: Path, name: str) -> Path:
    """Return the path of a regular file in a folder; InputError for a name that leaves it."""
    _check_name(folder, name)
    path = folder / name
    if any(p.is_symlink() for p in (path, *list(path.parents)[: name.count("/")])) or (
        not path.is_file()
    ):
        raise InputError(f"artefact {folder}: {name} is missing; {_AGAIN}")
    return path


def _check_name(folder: Path, name: str) -> None:
    if not stays_inside(name):
        raise InputError(f"artefact {folder}: {MANIFEST} names the file {name[:80]!r}")


def why_keep(folder: Path) -> str | None:
    """Say why `folder` is not an earlier export and nothing else, or None where it is just that."""
    from stan_infer.artefacts.manifest import Earlier

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
    """Return the hex digest of a file's content."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def config_sha256(config: StanConfig) -> str:
    """Hex digest of a config, which each graph carries: a manifest edited later is noticed."""
    text = json.dumps(config.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Add size and hash of every file in `folder` to `manifest` and write it, as the last file."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    full = {"schema": SCHEMA, **manifest, "files": files}
    text = json.dumps(full, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return manifest.json as it stands; InputError where there is none, or no JSON object."""
    path = folder / MANIFEST
    if not os.path.lexists(folder):
        temporary.clear(folder.absolute().parent)  # a crash may have left it aside
    if not os.path.isfile(path):
        raise InputError(
            f"{folder} is no exported artefact: it has no {MANIFEST}; make one with "
            "stan-infer export CHECKPOINT -o FOLDER"
        )
    return read_object(path, _MAX_MANIFEST)


def read_artefact(
    path: str | Path, *, check_hashes: bool = True, held: Collection[str] = ()
) -> Artefact:
    """Read and check an exported folder; with check_hashes, the hash of every file, too.

    held: roles of graphs whose files the caller holds, and which are hashed then (Artefact.held).
    Raises InputError for a folder without a manifest, an unknown schema, values of other types or
    out of range, names that leave the folder, missing files, wrong sizes, or files that nothing
    uses; CheckError for a file that is not the one exported.
    """
    from stan_infer.artefacts.manifest import Manifest, check_manifest

    folder = Path(path)
    raw = read_manifest(folder)
    schema = raw.get("schema")
    if not isinstance(schema, str) or schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise InputError(
            f"artefact {folder} has schema {str(schema)[:20]!r}; this version reads {SCHEMA}: "
            f"{_AGAIN}"
        )
    try:
        manifest = checked(raw, Manifest, MANIFEST)
        for name in manifest["files"]:
            _check_name(folder, name)
        config = StanConfig.from_dict(manifest["model"])
        check_manifest(manifest, config)
        for name in manifest["files"]:
            inside(folder, name)
    except InputError as e:
        raise e if str(folder) in str(e) else InputError(f"artefact {folder}: {e}") from e
    graphs = tuple(_graph(g) for g in manifest["graphs"])
    for name, entry in manifest["files"].items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise _other_size(folder / name, size, entry["bytes"])
    _refuse_unlisted(folder, manifest)
    if check_hashes:
        later = {n for g in graphs if g.role in held for n in (g.file, *g.external_data)}
        for name, entry in manifest["files"].items():
            if name in later:
                continue
            with _open(folder / name) as f:
                _compare(folder / name, f, entry)
    return Artefact(folder, config, graphs, manifest)


def is_engine_file(name: str) -> bool:
    """Whether a file is a plan or its sidecar, or their folder: the manifest lists none of them.

    Nor one that is being built, in a folder of `temporary`.
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
    """A graph may read weights from any file beside it, so nothing may lie there without a hash."""
    files = manifest["files"]
    listed = {MANIFEST, *files, *(str(above) for n in files for above in PurePosixPath(n).parents)}
    engine_files = 0
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        engine_files += is_engine_file(name)
        if engine_files > _MAX_ENGINE_FILES:
            raise InputError(f"artefact {folder}: {ENGINES_FOLDER}/ holds too many files")
        if (name not in listed and not is_engine_file(name)) or path.is_symlink():
            raise InputError(
                f"artefact {folder}: {name[:80]!r} is not listed in {MANIFEST}, or is a link; "
                "take it out of the folder"
            )


def _open(path: Path) -> BufferedReader:
    """Open a regular file and no link: not even one that took its place a moment ago."""
    try:
        return open_regular(path, follow=False)[0]
    except InputError as e:
        raise InputError(f"{path} cannot be read: {e}; {_AGAIN}") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror or e}); {_AGAIN}") from e


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
        f"artefact {path.parent}: {path.name} has {size} bytes, {MANIFEST} says {wanted}: "
        "incomplete copy?"
    )


def _changed(path: Path) -> CheckError:
    return CheckError(
        f"artefact {path.parent}: the hash of {path.name} is not the one in {MANIFEST}: the file "
        f"was changed after the export; {_AGAIN}"
    )
