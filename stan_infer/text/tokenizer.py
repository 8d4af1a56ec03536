"""Captions -> CLIP token ids: the authors' text rules, then byte-level BPE.

The rules and the vocabulary are OpenAI CLIP's. The vocabulary comes from the installed open_clip
package or from a tokenizer.json; open_clip itself is never imported, since that imports torch.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
import json
import logging
import operator
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, MissingError, nearest
from stan_infer.system.atomic import new_file
from stan_infer.system.packages import install_command, require
from stan_infer.text.clip_licence import CLIP_LICENCE, CLIP_LICENCE_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_POSITIONS = 77  # the authors' code cuts to this first, whatever the length
_MAX_CHARACTERS = 10_000
_MAX_FILE = 16 * 2**20
_MERGES = 48894  # 49408 entries without 256 bytes, 256 bytes that end a word, 2 special tokens
_RULES = ("keep-eot", "authors")
# OpenAI's pattern ignores case. On lower-cased text that only adds the long s and drops U+0345,
# whose upper case is a letter (found by trying every code point).
_PATTERN = (
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>"
    r"|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
)

_log = logging.getLogger(__name__)


def tokenize(
    texts: Sequence[str] | str,
    context_length: int = 32,
    *,
    truncation: str = "keep-eot",
    vocabulary: Path | None = None,
) -> NDArray[np.int64]:
    """Token ids [Q, L] int64 of Q texts: start 49406, the text, end 49407, padding 0.

    truncation: what becomes of a text with more than L - 2 tokens. "keep-eot" cuts it and ends it
    with the end token, as open_clip does. "authors" is the release: cut to 77 with an end token,
    then to L without, so that every text that loses its end token gets the same embedding. Texts
    that do not fit are named in one logged warning under both rules.

    vocabulary: a tokenizer.json written by write_vocabulary; None is the installed open_clip's.
    Raises InputError (wrong texts, length 3 to 77, rule or file), MissingError (no vocabulary or
    no tokenizers or ftfy package). Source: OpenAI CLIP's tokenizer as the STAN authors call it.
    """
    if truncation not in _RULES:
        hint = nearest(str(truncation), _RULES)
        raise InputError(
            f"unknown truncation '{truncation}'{hint}; allowed are {', '.join(_RULES)}"
        )
    captions, length = _check_texts(texts), _check_length(context_length)
    encoded = _encode_all(captions, vocabulary)
    _warn(captions, [i for i, ids in enumerate(encoded) if len(ids) > length], length, truncation)
    rows = np.zeros((len(encoded), length), dtype=np.int64)
    for row, ids in zip(rows, encoded, strict=True):
        cut = _cut(ids, length) if truncation == "keep-eot" else _cut(ids, _POSITIONS)[:length]
        row[: len(cut)] = cut
    return rows


def cut_texts(
    texts: Sequence[str] | str, context_length: int = 32, *, vocabulary: Path | None = None
) -> list[int]:
    """Indices of the texts that would have no end token left under the rule "authors".

    The release pools these at position 0: all get the same embedding. Raises as tokenize does.
    """
    captions, length = _check_texts(texts), _check_length(context_length)
    encoded = _encode_all(captions, vocabulary)
    return [i for i, ids in enumerate(encoded) if END not in _cut(ids, _POSITIONS)[:length]]


def text_rules(context_length: int) -> dict[str, Any]:
    """What a client without this package must do to a text before tokenizer.json, and after."""
    return {
        "clean": ["ftfy.fix_text", "html.unescape", "html.unescape", "white space", "lower case"],
        "start": START,
        "end": END,
        "padding": 0,
        "context_length": context_length,
        "truncation": "keep-eot",
    }


def write_vocabulary(path: Path) -> None:
    """Write the installed open_clip's vocabulary as a tokenizer.json of the tokenizers library.

    Its licence goes beside it (clip_licence).
    The text rules (ftfy, html, white space, lower case) are not part of the file. The library
    itself adds the start and end token. Raises MissingError, InputError (cannot write).
    """
    _need_packages()
    from tokenizers.processors import TemplateProcessing

    tokenizer = _build(_installed_merges())
    (start, end) = _SPECIAL
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=list(_SPECIAL.items())
    )
    with new_file(Path(path)) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    with new_file(Path(path).with_name(CLIP_LICENCE_FILE)) as temporary:
        temporary.write_text(CLIP_LICENCE, encoding="utf-8")


def _clean(text: str) -> str:
    import ftfy

    text = _unescape(_unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _unescape(text: str) -> str:
    """html.unescape, also of numbers beyond Python's limit of 4300 digits: all are no character."""
    text = re.sub(r"&#0++(?=[0-9])", "&#", text)
    return html.unescape(re.sub(r"&#[0-9]{8,}+", "&#99999999", text))


def _cut(ids: list[int], length: int) -> list[int]:
    return ids if len(ids) <= length else [*ids[: length - 1], END]


def _encode_all(texts: list[str], vocabulary: Path | None) -> list[list[int]]:
    _need_packages()
    if vocabulary is None:
        tokenizer = _installed()
    else:
        path = Path(vocabulary)
        if not path.is_file():
            raise InputError(f"vocabulary {path} is not a file; give a tokenizer.json")
        stat = path.stat()
        tokenizer = _from_file(path.resolve(), stat.st_size, stat.st_mtime_ns)
    return [[START, *_encode(tokenizer, _clean(text)), END] for text in texts]


def _need_packages() -> None:
    for module in ("ftfy", "tokenizers"):
        require(module, "tokenising texts", "runtime")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    if not any(word in text for word in _SPECIAL):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    ids: list[int] = []
    # OpenAI's code knows a special token only where its pattern finds it: not in "!!<|endoftext|>".
    for piece, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        if piece in _SPECIAL:
            ids.append(_SPECIAL[piece])
        else:
            ids += tokenizer.encode(text[begin:end], add_special_tokens=False).ids
    return ids


def _warn(texts: list[str], cut: list[int], length: int, rule: str) -> None:
    if not cut:
        return
    if rule == "authors" and length < _POSITIONS:
        what = "their end token is cut off, and the model gives all of them the same embedding"
    else:
        what = f"only their first {length - 2} tokens are used"
    named = ", ".join(f"{i} {texts[i][:40]!r}" for i in cut[:20])
    more = f" and {len(cut) - 20} more" if len(cut) > 20 else ""
    _log.warning(
        "%d of %d texts do not fit in %d tokens; %s: %s%s",
        *(len(cut), len(texts), length, what, named, more),
    )


def _check_texts(texts: Sequence[str] | str) -> list[str]:
    try:
        captions = [texts] if isinstance(texts, str) else list(texts)
    except TypeError:
        raise InputError(f"texts are a {type(texts).__name__}; give a list of strings") from None
    if not captions:
        raise InputError("texts are an empty list; give at least one text")
    for i, text in enumerate(captions):
        if not isinstance(text, str):
            raise InputError(f"text {i} is a {type(text).__name__}; give strings")
        if len(text) > _MAX_CHARACTERS:
            raise InputError(
                f"text {i} has {len(text)} characters; allowed are {_MAX_CHARACTERS}: this is not "
                "a caption; give one text per line with --labels"
            )
    return captions


def _check_length(context_length: int) -> int:
    try:
        length = operator.index(context_length)
    except TypeError:
        length = 0
    if not 3 <= length <= _POSITIONS:
        raise InputError(f"context_length is {context_length!r}; allowed are 3 to {_POSITIONS}")
    return length


@functools.lru_cache(maxsize=1)
def _installed() -> Tokenizer:
    return _build(_installed_merges())


def _installed_merges() -> list[tuple[str, str]]:
    # find_spec only locates a top-level package: open_clip and torch stay unimported.
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / "bpe_simple_vocab_16e6.txt.gz" for folder in folders]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        seen = "has no vocabulary file" if folders else "is not installed"
        raise MissingError(
            f"no vocabulary: open_clip_torch 3 {seen} and no tokenizer.json was given: "
            f"{install_command('cpu')}"
        )
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        pairs = [(a, b) for a, b in (line.split() for line in lines[1 : _MERGES + 1])]
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise MissingError(
            f"open_clip's vocabulary file is damaged ({e}): "
            'pip install --force-reinstall "open_clip_torch>=3,<4"'
        ) from e
    return pairs


def _vocab(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The ids that follow from the merges: bytes, bytes that end a word, merges, special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), *_SPECIAL]
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
    try:
        with path.open("rb") as f:
            merges = _merges_of(json.loads(f.read(_MAX_FILE + 1)))
        return _build(merges)
    except OSError as e:
        raise InputError(f"cannot read vocabulary {path}: {e.strerror or e}") from e
    except Exception as e:  # the tokenizers library raises bare Exception
        reason = str(e) or type(e).__name__
        raise InputError(
            f"vocabulary {path} is not a tokenizer.json as export writes it ({reason[:200]}); "
            "export the model again"
        ) from e


def _merges_of(content: Any) -> list[tuple[str, str]]:
    """The merges of a parsed tokenizer.json; raises anything at all for a file unlike ours."""
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
    # Everything else follows from the merges, so they can be checked by building it again.
    if len(merges) != _MERGES:
        raise ValueError(f"it has {len(merges)} merges, not {_MERGES}")
    if model["vocab"] != _vocab(merges):
        raise ValueError("its token ids are not those that follow from its merges")
    return merges
