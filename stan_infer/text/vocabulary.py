"""CLIP's vocabulary: the one that this package brings, or that of a tokenizer.json."""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.errors import InputError, MissingError
from stan_infer.system.atomic import new_file
from stan_infer.system.outside_file import read_bounded
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = 49406, 49407
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_MAX_FILE = 16 * 2**20
_MERGES = 48894  # 49408 entries less 256 bytes, 256 bytes that end a word and 2 special tokens
# OpenAI's pattern ignores case. On lower-cased text that matters for two characters (found by
# trying every code point): the long s matches s, and U+0345, whose upper case is a letter, nothing.
_PATTERN = (
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>"
    r"|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
)

# OpenAI's file (bpe_simple_vocab_16e6.txt.gz) without the merges that CLIP leaves out: 0.2 MB.
_MERGES_FILE = Path(__file__).with_name("clip_merges.txt.gz")
CLIP_LICENCE = _MERGES_FILE.with_name("LICENSE-CLIP.txt")  # also beside every tokenizer.json


def load_vocabulary(path: Path | None) -> Tokenizer:
    """Load the tokenizer from a file that write_vocabulary wrote; None: with CLIP's vocabulary.

    Raises InputError (wrong file), MissingError (no package, or a damaged installation).
    """
    _need_packages()
    if path is None:
        return _clip()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"vocabulary {path} is not a file; give a tokenizer.json")
    stat = path.stat()
    return _from_file(path.resolve(), stat.st_size, stat.st_mtime_ns)


def write_vocabulary(path: Path) -> None:
    """Write CLIP's vocabulary as a tokenizer.json of the tokenizers library.

    Its licence is written beside it. The text rules (ftfy, html, white space, lower case) are not
    in the file. The library adds the start and end tokens. Raises MissingError, and InputError if
    it cannot be written.
    """
    _need_packages()
    from tokenizers.processors import TemplateProcessing

    tokenizer = _build(_clip_merges())
    (start, end) = SPECIAL
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=list(SPECIAL.items())
    )
    with new_file(Path(path)) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    with new_file(Path(path).with_name(CLIP_LICENCE.name)) as temporary:
        temporary.write_bytes(CLIP_LICENCE.read_bytes())


def _need_packages() -> None:
    for module in ("ftfy", "tokenizers"):
        require(module, "tokenising texts", "runtime")


@functools.lru_cache(maxsize=1)
def _clip() -> Tokenizer:
    return _build(_clip_merges())


def _clip_merges() -> list[tuple[str, str]]:
    try:
        lines = gzip.decompress(_MERGES_FILE.read_bytes()).decode("utf-8").splitlines()
        pairs = [(a, b) for a, b in (line.split(" ") for line in lines)]
        if len(pairs) != _MERGES:
            raise ValueError(f"{len(pairs)} merges, not {_MERGES}")
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise MissingError(
            f"the vocabulary {_MERGES_FILE} of this installation is missing or damaged ({e}): "
            "pip install --force-reinstall --no-deps stan-infer"
        ) from e
    return pairs


def _vocab(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the ids of words in CLIP's order: bytes, bytes that end a word, merges, specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), *SPECIAL]
    return {word: i for i, word in enumerate(words)}


def _build(merges: list[tuple[str, str]]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Steps

    tokenizer = Tokenizer(BPE(_vocab(merges), merges, end_of_word_suffix="</w>"))
    split = Split(Regex(_PATTERN), "removed", invert=True)
    tokenizer.pre_tokenizer = Steps([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


@functools.lru_cache(maxsize=4)
def _from_file(path: Path, size: int, mtime_ns: int) -> Tokenizer:
    """Read a tokenizer.json that anybody may have written.

    Only its merges are used, by the code that builds ours, and everything else in it must be what
    follows from them: a stranger's pattern or normaliser is never run.
    """
    if size > _MAX_FILE:
        raise InputError(f"vocabulary {path} has {size} bytes; allowed are {_MAX_FILE}")
    data = read_bounded(path, _MAX_FILE, name=f"vocabulary {path}")
    try:
        return _build(_merges_of(json.loads(data)))
    except Exception as e:  # the tokenizers library raises bare Exception
        reason = str(e) or type(e).__name__
        raise InputError(
            f"vocabulary {path} is not a tokenizer.json as export writes it ({reason[:200]}); "
            "export the model again"
        ) from e


def _merges_of(content: Any) -> list[tuple[str, str]]:
    """Return the merges of a parsed tokenizer.json; raises any exception for a file unlike ours."""
    model, steps = content["model"], content["pre_tokenizer"]["pretokenizers"]
    if model["type"] != "BPE" or model["end_of_word_suffix"] != "</w>":
        raise ValueError("its model is not a BPE with words ending in </w>")
    if content["normalizer"] is not None or content["added_tokens"]:
        raise ValueError("it has a normalizer or added tokens")
    if [s["type"] for s in steps] != ["Split", "ByteLevel"] or (
        steps[0]["pattern"] != {"Regex": _PATTERN}
    ):
        raise ValueError("it splits words in another way")
    # Older versions of the library write "a b" in place of ["a", "b"].
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    merges = [(a, b) for a, b in pairs]
    # The ids follow from the merges, so they are built again and compared.
    if len(merges) != _MERGES:
        raise ValueError(f"it has {len(merges)} merges, not {_MERGES}")
    if model["vocab"] != _vocab(merges):
        raise ValueError("its token ids are not those that follow from its merges")
    return merges
