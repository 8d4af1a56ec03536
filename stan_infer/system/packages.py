"""Import an optional package, or say which command installs the extra that brings it.

This package is on no index, so `pip install stan-infer` finds nothing. The command therefore names
the clone or file that it was installed from, or, if that is gone, the packages of the extra.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from stan_infer.errors import MissingError
from stan_infer.system.signals import held_back

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "stan-infer"


def require(module: str, purpose: str, extra: str) -> Any:
    """Import an optional package and return it.

    purpose: what needs it, as in "reading videos". extra: the one of ours that brings it. Raises
    MissingError, with the command that installs it if it is absent, or that installs it again if it
    does not load, whatever exception it raises then.
    """
    collects = gc.isenabled()
    gc.disable()  # what a package makes while it loads stays: torch makes half a million objects
    try:
        with held_back(module):
            return importlib.import_module(module)
    except (Exception, SystemExit) as e:  # a broken package may raise anything while it loads
        if isinstance(e, ModuleNotFoundError) and f"{module}.".startswith(f"{e.name}."):
            raise MissingError(f"{purpose} needs {module} ({e}): {install_command(extra)}") from e
        raise MissingError(
            f"{purpose} needs {module}, which does not load ({type(e).__name__}: {str(e)[:200]}): "
            f"{install_command(extra, options='--force-reinstall')}"
        ) from e
    finally:
        if collects:
            gc.enable()


def is_installed(module: str) -> bool:
    """Whether an optional package is here, without importing it; it may still fail to load."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def install_command(*extras: str, options: str = "") -> str:
    """Return the shell command that installs these extras here, as in `pip install -e "/x[cpu]"`.

    options: of pip, put before the names. If this platform has no package of the extras, or this
    package lies here without its metadata, the text says so instead.
    """
    try:
        here = distribution(NAME)
    except PackageNotFoundError:
        root = Path(__file__).resolve().parents[2]
        if (root / "pyproject.toml").is_file():
            return _pip(options, "-e", _quoted(f"{root}[{','.join(extras)}]"))
        return f"install the packages of extra {' and '.join(extras)} of its pyproject.toml"
    needed = requirements(here.requires or [], extras)
    if not needed:
        return f"no package of extra {' and '.join(extras)} exists for {sys.platform}"
    source, editable = _source(here)
    if source is not None:
        flag = "-e" if editable else ""
        return _pip(options, flag, _quoted(f"{source}[{','.join(extras)}]"))
    return _pip(options, *(_quoted(str(r)) for r in needed))


def requirements(
    lines: list[str], extras: tuple[str, ...], environment: Mapping[str, str] | None = None
) -> list[Requirement]:
    """Return the requirements that extras add, from a distribution's `Requires-Dist` lines.

    Markers are evaluated, and references to other extras of this package are followed. extras:
    ("",) gives what every install needs. environment: values of markers that replace those of the
    running Python.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Requirement] = {}
    todo, done = list(extras), set()
    while todo:
        extra = todo.pop(0)
        done.add(extra)
        for line in lines:
            requirement = Requirement(line)
            marker = requirement.marker
            values = {**(environment or {}), "extra": extra}
            if extra and (marker is None or marker.evaluate({**values, "extra": ""})):
                continue  # needed by every install: not what this extra adds
            if marker is not None and not marker.evaluate(values):
                continue
            if canonicalize_name(requirement.name) == NAME:
                todo += sorted(requirement.extras - done)
                continue
            requirement.marker = None
            found[str(requirement)] = requirement
    return list(found.values())


def _source(here: Distribution) -> tuple[str | None, bool]:
    """Return what it was installed from, a folder or file that still exists, and if as editable."""
    # The metadata may be that of a build in the clone, found because Python runs in that folder.
    above = Path(str(here.locate_file("")))
    if (above / "pyproject.toml").is_file():
        return str(above), True
    # PEP 610: written by the installer, absent for what came from an index.
    origin = json.loads(here.read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    path = url2pathname(url.path)
    if url.scheme != "file" or not os.path.exists(path):
        return None, False
    return path, bool(origin.get("dir_info", {}).get("editable"))


def _pip(*words: str) -> str:
    return " ".join(("pip install", *filter(None, words)))


def _quoted(text: str) -> str:
    # Every shell understands double quotes, but inside them POSIX shells still expand these.
    special = os.name == "posix" and set(text) & set('"$`\\!')
    return shlex.quote(text) if special else f'"{text}"'
