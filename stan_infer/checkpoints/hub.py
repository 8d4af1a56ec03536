"""Fetch what a name on the Hugging Face hub stands for, and check it against the lock file.

The files lie in huggingface_hub's cache, which other tools share. Names of repositories and files,
sizes and hashes that a server sends are a stranger's: bounded and compared before they are used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stan_infer.checkpoints.hub_names import COMMIT, HubName, chosen_file, is_hub_name, parse_name
from stan_infer.checkpoints.lock_file import LOCK, Locked, LockedFile, add_to_lock, read_lock
from stan_infer.checkpoints.weights_folder import CONFIGS, INDEX, MANIFEST, shard_names
from stan_infer.errors import CheckError, InputError, MissingError, StanError, one_line
from stan_infer.system.cache_folder import cache_folder
from stan_infer.system.json_file import read_object
from stan_infer.system.outside_file import stays_inside
from stan_infer.system.packages import require
from stan_infer.system.temporary import workplace

_MAX_BYTES = 64 * 2**30  # of all files together; an L/14 with its optimizer has 6 GB
_MAX_SMALL = 16 * 2**20  # of a manifest, a config or an index
_MAX_FILES = 256  # that one name may stand for
_MAX_LISTED = 20_000  # files of a repository

Say = Callable[[str], None]
Source = TypeVar("Source")
_log = logging.getLogger(__name__)


def located(
    source: Source, *, locked: bool = False, say: Say = _log.info, write: bool = False
) -> Source | Path:
    """Return the path of what a name on the hub stands for; any other source as it is.

    locked: only names in the lock file of the current directory are taken. An entry there pins the
    commit in any case, and its files are compared. say: gets one line with commit and hashes.
    write: adds a new name to the lock file.

    Raises InputError for another form of name, an unknown repository, revision or file, or no clear
    choice; MissingError where the hub cannot be reached, or for a file that is not in the cache
    when offline; CheckError for bytes that are not those of the lock file or of the hub's own hash.
    """
    if not is_hub_name(source):
        return source
    text, lock = str(source), Path(LOCK)
    name = parse_name(text)
    entry = read_lock(lock).get(text)
    if entry is None and locked:
        raise InputError(
            f"--locked: {text} is not in {lock}; without --locked it is fetched and added there"
        )
    require("huggingface_hub", f"checkpoint {text}", "hub")
    with _told(name), _quiet():
        path, found = _at_commit(name, entry) if entry else _newest(name)
    _say_found(text, found, say)
    if entry is None and write:
        try:
            add_to_lock(lock, text, found)
        except (OSError, InputError) as e:
            say(f"{text} is not in {lock}, so later runs cannot compare it: {e}")
    return path


def _say_found(text: str, found: Locked, say: Say) -> None:
    file, facts = found.file, found.files[found.file]
    more = f", and {len(found.files) - 1} more" if len(found.files) > 1 else ""
    size = f"{facts['bytes'] / 1e6:.1f} MB"
    say(f"{text}: commit {found.commit}: {file} ({size}, sha256 {facts['sha256']}){more}")


def _newest(name: HubName) -> tuple[Path, Locked]:
    """Fetch what a name stands for now, or offline what the cache says that it stood for."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        commit, sizes, hashes = _cached(name)
    else:
        commit, sizes, hashes = _listed(name)
    main = chosen_file(name, sizes)
    files = [main, *_beside(main, sizes)]
    _check_sizes(name, {f: sizes[f] for f in files})
    got = {f: _fetch(name, commit, f, hashes.get(f)) for f in files}
    more = _named_inside(name, main, got[main])
    if missing := [f for f in more if f not in sizes]:
        raise InputError(f"{name.repository}: {main} names {missing[0]}, which is not there")
    _check_sizes(name, {f: sizes[f] for f in [*files, *more]})
    got |= {f: _fetch(name, commit, f, hashes.get(f)) for f in more}
    _note_revision(name, commit)
    facts = {file: of_file for file, (_, of_file) in got.items()}
    return _path(name, commit, main, got), Locked(commit, main, facts)


def _at_commit(name: HubName, entry: Locked) -> tuple[Path, Locked]:
    """Fetch the files of an entry; CheckError for other bytes than it has."""
    _check_sizes(name, {file: facts["bytes"] for file, facts in entry.files.items()})
    got = {f: _fetch(name, entry.commit, f, facts["sha256"]) for f, facts in entry.files.items()}
    return _path(name, entry.commit, entry.file, got), entry


def _listed(name: HubName) -> tuple[str, dict[str, int], dict[str, str]]:
    """The commit, sizes and, of large files, SHA-256 of a repository, as the hub says."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(
        name.repository, revision=name.revision, files_metadata=True, timeout=30
    )
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise CheckError(f"the hub names no commit of {name.repository}, but {commit[:60]!r}")
    if name.revision and COMMIT.fullmatch(name.revision) and name.revision != commit:
        raise CheckError(
            f"the hub sends commit {commit} of {name.repository}, not the one asked for"
        )
    sizes, hashes = {}, {}
    listed = info.siblings or []
    if len(listed) > _MAX_LISTED:
        raise InputError(
            f"{name.repository} has {len(listed)} files; at most {_MAX_LISTED} are read"
        )
    for file in listed:
        if not stays_inside(file.rfilename):
            continue  # no name that we would open
        if file.size is None:
            raise InputError(f"the hub states no size of {file.rfilename} in {name.repository}")
        sizes[file.rfilename] = file.size
        if file.lfs is not None:
            hashes[file.rfilename] = str(file.lfs.sha256)
    return commit, sizes, hashes


def _cached(name: HubName) -> tuple[str, dict[str, int], dict[str, str]]:
    """The same of the cache, without hashes, for the revision that was fetched there last."""
    above, ref = _cache_places(name)
    revision = ref.name
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = above / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise _not_here(name, f"no files of revision {revision}")
    paths = {p.relative_to(snapshot).as_posix(): p for p in snapshot.rglob("*") if p.is_file()}
    return commit, {n: p.stat().st_size for n, p in paths.items() if stays_inside(n)}, {}


def _cache_places(name: HubName) -> tuple[Path, Path]:
    """The folder of a repository in the cache, and the file with the commit of the revision."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name.repository, repo_type="model")
    above = Path(constants.HF_HUB_CACHE) / folder
    return above, above / "refs" / (name.revision or "main")


def _note_revision(name: HubName, commit: str) -> None:
    """Keep the revision's commit where the cache has it, as files are fetched by their commit."""
    _, ref = _cache_places(name)
    if not COMMIT.fullmatch(ref.name):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _beside(main: str, files: dict[str, int]) -> list[str]:
    """The configs beside the weights, which say what shapes do not show."""
    folder, slash, _ = main.rpartition("/")
    return [f"{folder}{slash}{n}" for n in CONFIGS if f"{folder}{slash}{n}" in files]


def _named_inside(name: HubName, main: str, got: tuple[Path, LockedFile]) -> list[str]:
    """The files that an exported folder's manifest or an index of weights lists."""
    if main == MANIFEST:
        listed = read_object(got[0], _MAX_SMALL).get("files")
        names = list(listed) if isinstance(listed, dict) else []
    elif main.endswith(INDEX):
        folder, slash, _ = main.rpartition("/")
        names = [f"{folder}{slash}{n}" for n in sorted(set(shard_names(got[0]).values()))]
    else:
        return []
    if not all(isinstance(n, str) and stays_inside(n) for n in names) or len(names) > _MAX_FILES:
        raise InputError(f"{name.repository}: {main} names files elsewhere, or too many")
    return names


def _check_sizes(name: HubName, sizes: dict[str, int]) -> None:
    small = {f: n for f, n in sizes.items() if f.endswith(".json") and n > _MAX_SMALL}
    for file, size in small.items():
        raise InputError(f"{name.repository}: {file} is said to have {size} bytes")
    total = sum(sizes.values())
    if total > _MAX_BYTES or min(sizes.values()) < 0:
        raise InputError(
            f"{name.repository}: {', '.join(list(sizes)[:5])} are said to have {total} bytes; at "
            f"most {_MAX_BYTES} are fetched"
        )


def _fetch(name: HubName, commit: str, file: str, sha256: str | None) -> tuple[Path, LockedFile]:
    """Return a file in the cache, fetched where it is not there, with its size and hash."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    kept = try_to_load_from_cache(name.repository, file, revision=commit)
    path = Path(kept if isinstance(kept, str) else hf_hub_download(
        name.repository, file, revision=commit))  # fmt: skip
    with path.open("rb") as f:
        facts = LockedFile(
            bytes=os.fstat(f.fileno()).st_size, sha256=hashlib.file_digest(f, "sha256").hexdigest()
        )
    if sha256 is not None and facts["sha256"] != sha256:
        raise CheckError(
            f"{name.at(commit, file)} has the SHA-256 {facts['sha256']}, and {sha256} is expected: "
            f"delete {os.path.realpath(path)} to fetch it again"
        )
    return path, facts


def _path(name: HubName, commit: str, main: str, got: dict[str, tuple[Path, LockedFile]]) -> Path:
    """Return the file to read, or the folder of a manifest with its files."""
    if main != MANIFEST:
        return got[main][0]
    # A folder may hold no links, and the cache has nothing else: the same bytes get a second name.
    folder = cache_folder("hub") / f"{name.repository.replace('/', '--')}@{commit}"
    if not folder.exists():
        with workplace(folder.parent) as work:
            for file, (path, _) in got.items():
                place = work / "new" / file
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(os.path.realpath(path), place)
                except OSError:  # another file system
                    shutil.copyfile(path, place)
            try:
                os.rename(work / "new", folder)
            except OSError:
                if not folder.is_dir():  # another process was quicker
                    raise
    return folder


def _not_here(name: HubName, what: str) -> MissingError:
    return MissingError(
        f"hf:{name.repository}: the cache has {what}, and HF_HUB_OFFLINE forbids fetching: unset "
        "it once, or copy the file here and give its path"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars where nobody sees them, and no advice of the library between our lines."""
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    level, hidden = logger.level, utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden and not sys.stderr.isatty():
            utils.enable_progress_bars()


@contextmanager
def _told(name: HubName) -> Iterator[None]:
    """Turn what the library raises into one of our errors."""
    from huggingface_hub import constants, errors

    where = f"hf:{name.repository}"
    try:
        yield
    except StanError:
        raise
    except errors.GatedRepoError as e:
        raise MissingError(
            f"{where} is gated: accept its terms on its page, then set HF_TOKEN or run "
            "`hf auth login`"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise InputError(
            f"{where} has no such revision ({name.revision or 'main'}, or the commit in {LOCK}): "
            f"give another, or delete its entry in {LOCK}"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise MissingError(
            f"{where} does not exist, or is private: check the name, or set HF_TOKEN or run "
            "`hf auth login`"
        ) from e
    except Exception as e:  # whatever its HTTP client raises
        if constants.HF_HUB_OFFLINE:
            raise _not_here(name, "not all of its files") from e
        raise MissingError(
            f"{where} could not be fetched ({_first_line(e)}): is there a network? "
            "HF_HUB_OFFLINE=1 takes what the cache has"
        ) from e


def _first_line(e: Exception) -> str:
    cause: Any = e.__cause__ or e
    text = str(cause).strip() or str(e).strip() or type(cause).__name__
    return one_line(text.splitlines()[0])[:160]
