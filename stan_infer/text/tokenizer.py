"""Turn captions into CLIP token ids: the authors' text rules, then byte-level BPE.

Rules and vocabulary (see `vocabulary`) are those of OpenAI's CLIP.
"""

from __future__ import annotations

import html
import logging
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, check_word
from stan_infer.text.vocabulary import END, SPECIAL, START, load_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_POSITIONS = 77  # the authors' code cuts to this first, whatever the length
_MAX_CHARACTERS = 10_000
_RULES = ("keep-eot", "authors")
_log = logging.getLogger(__name__)


def tokenize(
    texts: Sequence[str] | str,
    context_length: int = 32,
    *,
    truncation: str = "keep-eot",
    vocabulary: Path | None = None,
) -> NDArray[np.int64]:
    """Turn texts into CLIP's token ids: start 49406, the text, end 49407, padding 0.

    The vocabulary comes with this package. Source: OpenAI CLIP's tokenizer as the STAN authors call
    it. One logged warning names the texts that do not fit.

    Args:
        texts: a string or a list of Q strings. A blank one gives start and end alone, as in CLIP;
            what embeds or scores texts refuses it.
        context_length: L, 3 to 77; of a model its `config.context_length`.
        truncation: what happens to a text with more than L - 2 tokens. "keep-eot" cuts it and ends
            it with the end token, as open_clip does. "authors" does what the release does: it cuts
            to 77 with an end token, then to L without, so that all texts that lose their end token
            get the same embedding.
        vocabulary: a tokenizer.json of an exported folder; None is CLIP's own.

    Returns:
        int64 [Q, L].

    Raises:
        InputError: wrong texts, length, rule or file.
        MissingError: the packages tokenizers or ftfy are not installed.

    Example:
        >>> import stan_infer as si
        >>> si.tokenize("a dog runs", 8).tolist()
        [[49406, 320, 1929, 5586, 49407, 0, 0, 0]]
    """
    check_word("truncation", str(truncation), _RULES)
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
    """Return the indices of the texts that lose their end token under the rule "authors".

    The release pools these at position 0: all get the same embedding. Raises as tokenize does.
    """
    captions, length = _check_texts(texts), _check_length(context_length)
    encoded = _encode_all(captions, vocabulary)
    return [i for i, ids in enumerate(encoded) if END not in _cut(ids, _POSITIONS)[:length]]


def text_rules(context_length: int) -> dict[str, Any]:
    """What a client without this package does to a text before it uses tokenizer.json, and after.

    The manifest of an exported folder holds it.
    """
    return {
        "clean": ["ftfy.fix_text", "html.unescape", "html.unescape", "white space", "lower case"],
        "start": START,
        "end": END,
        "padding": 0,
        "context_length": context_length,
        "truncation": "keep-eot",
    }


def _clean(text: str) -> str:
    import ftfy

    text = _unescape(_unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _unescape(text: str) -> str:
    """html.unescape, also for numbers beyond Python's limit of 4300 digits: none is a character."""
    text = re.sub(r"&#0++(?=[0-9])", "&#", text)
    return html.unescape(re.sub(r"&#[0-9]{8,}+", "&#99999999", text))


def _cut(ids: list[int], length: int) -> list[int]:
    return ids if len(ids) <= length else [*ids[: length - 1], END]


def _encode_all(texts: list[str], vocabulary: Path | None) -> list[list[int]]:
    tokenizer = load_vocabulary(vocabulary)
    return [[START, *_encode(tokenizer, _clean(text)), END] for text in texts]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    if not any(word in text for word in SPECIAL):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    ids: list[int] = []
    # As in OpenAI's code, a special token counts only where the pattern splits it off, which it
    # does not in "!!<|endoftext|>".
    for piece, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        if piece in SPECIAL:
            ids.append(SPECIAL[piece])
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
