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
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stan_infer import temporary
from stan_infer.config import StanConfig
from stan_infer.errors import CheckError, InputError

MANIFEST = "manifest.json"
SCHEMA = "1.0"
ENGINES_FOLDER = "engines"  # plans, which come and go: each has a sidecar with its own hash
CONFIG_KEY = "stan_infer.config_sha256"  # in every graph's metadata
EIGHT_BITS = ("int8", "fp8")  # precisions that come from a calibration
_MAX_MANIFEST = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Graph:
    """One model file of an artefact, as its manifest describes it."""

    file: str
    role: str  # "video" or "text"
    precision: str
    opset: int
    inputs: tuple[dict[str, Any], ...]  # name, dtype, shape (ints or dimension names)
    outputs: tuple[dict[str, Any], ...]
    dims: dict[str, tuple[int, int]]  # dimension name -> smallest, largest


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A folder whose manifest was read and whose files are there."""

    path: Path
    config: StanConfig
    graphs: tuple[Graph, ...]
    manifest: dict[str, Any]

    def graph(self, role: str) -> Graph | None:
        """Return the graph of that role, or None."""
        return next((g for g in self.graphs if g.role == role), None)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, whose hash is the manifest's."""
        data = (self.path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise CheckError(f"artefact {self.path}: {name} was changed after the export")
        return data

    def check(self, name: str) -> None:
        """Compare a file's hash with the manifest's."""
        _check_file(self.path, name, self.manifest["files"][name], True)


def why_keep(folder: Path) -> str | None:
    """Say why `folder` is not an earlier export and nothing else, or None where it is just that."""
    try:
        manifest = read_manifest(folder)
    except InputError as e:
        return str(e)
    tool, files = manifest.get("tool"), manifest.get("files")
    if (
        not isinstance(tool, dict)
        or tool.get("name") != "stan_infer"
        or not isinstance(files, dict)
    ):
        return f"its {MANIFEST} was not written by stan_infer"
    known = {MANIFEST, *files}
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


def stays_inside(name: str) -> bool:
    """Whether a manifest may name this file: no absolute path, no "..", no drive letter."""
    plain = len(name) <= 200 and re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", name)
    return bool(plain) and ".." not in name.split("/")


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


def read_object(path: Path, limit: int, hint: str = "") -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises InputError, which ends with `hint`, for a larger file or one that holds something else.
    """
    size = path.stat().st_size
    if size > limit:
        raise InputError(f"{path} has {size} bytes; at most {limit} are read{hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise InputError(f"{path} is not JSON: {str(e)[:80]}{hint}") from e
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object{hint}")
    return values


def read_artefact(path: str | Path, *, check_hashes: bool = True) -> Artefact:
    """Read and check an exported folder.

    Raises InputError for a folder without a manifest, an unknown schema, names that leave the
    folder, missing files or wrong sizes; CheckError for a file that is not the one exported.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    schema = manifest.get("schema")
    if not isinstance(schema, str) or schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise InputError(
            f"artefact {folder} has schema {str(schema)[:20]!r}; this version reads {SCHEMA}: "
            "export the checkpoint again"
        )
    try:
        config = StanConfig.from_dict(_typed(manifest, "model", dict))
        graphs = tuple(_graph(g) for g in _typed(manifest, "graphs", list))
        files = _typed(manifest, "files", dict)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
        raise InputError(f"artefact {folder}: manifest.json is malformed ({e!r:.100})") from e
    except InputError as e:
        raise InputError(f"artefact {folder}: {e}") from e
    for graph in graphs:
        if graph.file not in files:
            raise InputError(f"artefact {folder}: {graph.file} has no hash in manifest.json")
    for name, entry in files.items():
        _check_file(folder, name, entry, check_hashes)
    # A graph may read weights from any file beside it, so nothing may lie there without a hash.
    listed = {MANIFEST, *files, *(parent for n in files for parent in _parents(n))}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (name not in listed and not is_engine_file(name)) or path.is_symlink():
            raise InputError(
                f"artefact {folder}: {name[:80]!r} is not listed in manifest.json, or is a link; "
                "take it out of the folder"
            )
    return Artefact(folder, config, graphs, manifest)


def external_files(artefact: Artefact, graph: Graph) -> list[str]:
    """Names in the folder of the files that a graph may read weights from; each has a hash."""
    entries = [g for g in artefact.manifest["graphs"] if g["file"] == graph.file]
    listed = [g.get("external_data") for g in entries]
    names = [name for names in listed if isinstance(names, list) for name in names]
    return [n for n in names if isinstance(n, str) and n in artefact.manifest["files"]]


def external_names(artefact: Artefact, graph: Graph) -> list[str]:
    """Names, relative to the graph, of the files that it may read weights from.

    Raises InputError for a graph with another name than *.onnx.
    """
    if not graph.file.endswith(".onnx"):
        # Runtimes choose a format by the file's name, and some of those hold more than a graph.
        raise InputError(f"artefact {artefact.path}: {graph.file[:80]!r} is no .onnx file")
    folder = PurePosixPath(graph.file).parent
    names = [PurePosixPath(name) for name in external_files(artefact, graph)]
    return [n.relative_to(folder).as_posix() for n in names if n.is_relative_to(folder)]


def is_engine_file(name: str) -> bool:
    """Whether a file is a plan or its sidecar, or their folder: the manifest lists none of them.

    Nor one that is being built, in a folder of `temporary`.
    """
    plan = r"[A-Za-z0-9_.-]+\.plan(\.json)?"
    pattern = rf"{ENGINES_FOLDER}(/{plan}|/{temporary.NAME}(/{temporary.LOCK}|/new\.(plan|json))?)?"
    return bool(re.fullmatch(pattern, name)) and ".." not in name


def _typed(values: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(values.get(name), kind):
        raise InputError(f"manifest.json: '{name}' is missing or no {kind.__name__}")
    return values[name]


def _graph(g: dict[str, Any]) -> Graph:
    if not all(isinstance(g[k], str) for k in ("file", "role", "precision")):
        raise TypeError("graph names")
    for value in (*g["inputs"], *g["outputs"]):
        if not (isinstance(value["name"], str) and isinstance(value["dtype"], str)):
            raise TypeError("names and dtypes of inputs and outputs")
        if not all(isinstance(n, (int, str)) for n in list(value["shape"])):
            raise TypeError("shapes of inputs and outputs")
    if not g["inputs"]:
        raise ValueError("a graph without inputs")
    dims = {str(k): (int(low), int(high)) for k, (low, high) in g["dims"].items()}
    return Graph(
        g["file"],
        g["role"],
        g["precision"],
        int(g["opset"]),
        tuple(dict(i) for i in g["inputs"]),
        tuple(dict(o) for o in g["outputs"]),
        dims,
    )


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _check_file(folder: Path, name: str, entry: Any, check_hashes: bool) -> None:
    if not stays_inside(name):
        raise InputError(f"artefact {folder}: manifest.json names the file {name[:80]!r}")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise InputError(f"artefact {folder}: {name} is missing; export the checkpoint again")
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
        raise InputError(
            f"artefact {folder}: {name} has {path.stat().st_size} bytes, manifest.json says "
            f"{entry.get('bytes') if isinstance(entry, dict) else entry}: incomplete copy?"
        )
    if check_hashes and sha256(path) != entry.get("sha256"):
        raise CheckError(
            f"artefact {folder}: the hash of {name} is not the one in manifest.json: the file was "
            "changed after the export; export the checkpoint again"
        )
