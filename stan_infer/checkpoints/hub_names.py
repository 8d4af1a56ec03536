"""Names of checkpoints on the Hugging Face hub, and which files of a repository are taken."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable

from stan_infer.checkpoints.weights_folder import INDEX, MANIFEST, NAMES
from stan_infer.errors import InputError, first_reasons, nearest, see
from stan_infer.system.outside_file import stays_inside

SCHEME = "hf:"
_FORM = "hf:OWNER/NAME[@REVISION][/FILE]"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"hf:({_WORD}/{_WORD})(?:@([A-Za-z0-9][A-Za-z0-9_.-]{{0,95}}))?(?:/(.+))?")
_ADDRESS = re.compile(
    r"(?i:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://(?:models/)?)([^/@]+/[^/@]+)"
    r"(?:(?:/(?:resolve|blob|tree)/|@)([^/]+))?(?:/([^?]+?))?/?(?:\?.*)?"
)
# What else the name of a repository is written as.
_ALMOST = re.compile(rf"(?i:hf|huggingface|hub):/*({_WORD}/{_WORD}(?:[@/].+)?)")
COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")
# What trainers keep beside the weights.
_BESIDE = re.compile(r"(optimizer|scheduler|training_args|rng_state|scaler)[^/]*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


@dataclasses.dataclass(frozen=True)
class HubName:
    """What a name says: repository OWNER/NAME, revision or None for main, file or None."""

    repository: str
    revision: str | None
    file: str | None

    def at(self, revision: str, file: str = "") -> str:
        """The same repository at a revision, as a user would write it."""
        return f"{SCHEME}{self.repository}@{revision}" + (f"/{file}" if file else "")


def is_hub_name(source: object) -> bool:
    """Whether a source is spelt as a name on the hub, or as an address of one."""
    return isinstance(source, str) and (
        source.startswith(SCHEME)
        or _ADDRESS.fullmatch(source) is not None
        or (_ALMOST.fullmatch(source) is not None and not os.path.exists(source))
    )


def is_repository(source: str) -> bool:
    """Whether a source is spelt as OWNER/NAME, and OWNER is no folder here."""
    is_name = re.fullmatch(rf"{_WORD}/{_WORD}(?<!\.pt)(?<!\.pth)(?<!\.safetensors)", source)
    return is_name is not None and not os.path.exists(source.partition("/")[0])


def parse_name(source: str) -> HubName:
    """Take a name apart; InputError for another form, or a file that leads outside."""
    if address := _ADDRESS.fullmatch(source):
        repository, revision, file = address.groups()
        words = f"hf:{repository}" + (f"@{revision}" if revision else "")
        raise InputError(
            f"checkpoint {source} is an address; give {words}" + (f"/{file}" if file else "")
        )
    match = _NAME.fullmatch(source)
    if match is None and (almost := _ALMOST.fullmatch(source)):
        raise InputError(f"checkpoint {source} is not of the form {_FORM}: give hf:{almost[1]}")
    if match is None or ".." in match[1]:
        raise InputError(f"checkpoint {source} is not of the form {_FORM}{see('CHECKPOINTS')}")
    name = HubName(*match.groups())
    if name.file is not None and not stays_inside(name.file):
        raise InputError(f"checkpoint {source}: {name.file!r} is no file in a repository ({_FORM})")
    if name.file is not None and name.file.endswith((".plan", ".onnx")):
        raise InputError(
            f"checkpoint {source}: a graph or plan alone is not fetched; give the repository of "
            f"the exported folder, hf:{name.repository}"
        )
    return name


def chosen_file(name: HubName, files: Iterable[str]) -> str:
    """Return the file to read of those in a repository; MANIFEST for an exported folder.

    The one that the name asks for; else the manifest; else the only one in safetensors; else the
    only pickle. Where several are there, the names that a folder of weights has go first. Raises
    InputError, which lists the files, for any other.
    """
    names = sorted(files)
    if name.file is not None:
        if name.file not in names:
            held = f"; it holds {first_reasons(names, 'no file')}"
            where = f"{name.repository} has no file {name.file}"
            raise InputError(f"{where}{nearest(name.file, names)}{held}")
        return name.file
    if MANIFEST in names:
        return MANIFEST
    weights = [n for n in names if not _BESIDE.match(n.rpartition("/")[2]) and not _SHARD.search(n)]
    safe = [n for n in weights if n.endswith((".safetensors", f".safetensors{INDEX}"))]
    found = safe or [n for n in weights if n.endswith((*_PICKLES, f".bin{INDEX}"))]
    usual = [n for n in NAMES if n in found]
    if len(found) > 1 and len(usual) == len(found):
        return usual[0]
    if len(found) == 1:
        return found[0]
    if not found:
        held = first_reasons(names, "no file")
        raise InputError(f"{name.repository} has no weights ({held})")
    raise InputError(
        f"{name.repository} has several files with weights ({first_reasons(found, '')}); "
        f"add one to the name, as in {SCHEME}{name.repository}/{found[0]}{see('CHECKPOINTS')}"
    )
