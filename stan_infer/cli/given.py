"""What the options of a command say: sessions, settings, lists of numbers, texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stan_infer.errors import InputError, whole

if TYPE_CHECKING:
    from stan_infer.engines.session import Session
    from stan_infer.text.labels import Labels as ClassNames

_OF_SESSIONS = (
    *("engine", "device", "precision", "provider", "threads", "calibration", "auto_rebuild"),
)


def use_threads(context: typer.Context) -> None:
    """Let all that a command opens from here on take the CPU threads of --threads."""
    from stan_infer.engines.thread_count import thread_count

    if context.params.get("threads"):
        context.with_resource(thread_count(context.params["threads"]))


def session_options(context: typer.Context) -> dict[str, Any]:
    """The options of open_session that a command was given: settings and those of _OF_SESSIONS."""
    use_threads(context)
    check_said_once(context)
    given = context.params
    found = {name: given[name] for name in _OF_SESSIONS if name in given}
    return found | {"settings": parse_settings(given["settings"], given["weights"]) or None}


def open_for(context: typer.Context, **options: Any) -> Session:
    """Open the session that the arguments and options of a command describe.

    options: further ones of open_session. The session is closed when the command ends, however it
    ends. Raises what open_session raises.
    """
    from stan_infer.engines.open import open_session

    session = open_session(context.params["checkpoint"], **session_options(context), **options)
    context.call_on_close(session.close)
    return session


def check_said_once(context: typer.Context) -> None:
    """Raise InputError for a field of --set that an option which was given says too."""
    settings = parse_settings(context.params["settings"])
    for field, name in (("frames", "frames"), ("context_length", "text_length")):
        if field in settings and context.params.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"--set {field}={settings[field]} and {option} {context.params[name]} say the "
                "same: give one of them"
            )


def parse_settings(pairs: Sequence[str] | None, weights: str | None = None) -> dict[str, Any]:
    """["heads=2"] -> {"heads": "2"}, and --weights as `weights`; load_model checks them."""
    settings: dict[str, Any] = {} if weights is None else {"weights": weights}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise InputError(f"--set {pair!r} is not KEY=VALUE, as in --set heads=2")
        name = name.strip().replace("-", "_")
        if name == "weights":
            raise InputError(f"--set {pair}: give --weights {value.strip()}")
        if name in settings:
            raise InputError(f"--set {name} is given twice: give it once")
        settings[name] = value.strip()
    return settings


def parse_numbers(text: str, name: str, high: int) -> list[int]:
    """ "1,4" -> [1, 4], each once; InputError for other text or a number outside 1 to `high`."""
    try:
        numbers = [whole(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} {text!r} is no list of whole numbers, as in {name} 1,4") from None
    for n in numbers:
        if not 1 <= n <= high:
            raise InputError(f"{name} {n} is out of range; allowed are 1 to {high}")
    return list(dict.fromkeys(numbers))


def class_names(labels: Path | None, split_words: bool) -> ClassNames | None:
    """The class names of --labels, None without it; InputError for --split-words alone."""
    if labels is None:
        if split_words:
            raise InputError("--split-words changes the names of --labels; give --labels FILE")
        return None
    from stan_infer.text.labels import read_labels

    return read_labels(labels, split_words=split_words)


def read_texts(
    text: Sequence[str] | None,
    labels: Path | None,
    split_words: bool = False,
    texts: Path | None = None,
) -> list[str]:
    """The texts of --text, of the file of --texts, or the names of --labels.

    Raises InputError unless one of them was given, and for a blank text.
    """
    if [bool(text), texts is not None, labels is not None].count(True) != 1:
        raise InputError(
            "give either --text TEXT (once or more), --texts FILE (one per line) or --labels FILE "
            "(class names)"
        )
    found = class_names(labels, split_words)
    if found is not None:
        return list(found.names)
    names = listed_texts(text, texts)
    _check_once(names, f"texts {texts}")  # probabilities are shared by all
    return names


def listed_texts(text: Sequence[str] | None, texts: Path | None) -> list[str]:
    """The texts of --text, then those of the file of --texts.

    Raises InputError for a blank one, and for a --text that is given twice or is no UTF-8; lines of
    a file may be alike, as captions are.
    """
    from stan_infer.system.outside_file import read_lines
    from stan_infer.text.blank import check_not_blank

    check_utf_8("--text", text or [])
    check_not_blank(text or [], "--text")
    _check_once(text or [], "--text")
    return [*(text or []), *([] if texts is None else read_lines(texts, "texts"))]


def check_utf_8(option: str, texts: Sequence[str]) -> None:
    """Raise InputError for a text of the command line whose bytes are not UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{option} {text[:60]!r} is no UTF-8 text here: set the terminal and LANG to "
                "UTF-8, or give the text in a file (--texts)"
            ) from None


def _check_once(texts: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise InputError(f"{where}: {text[:60]!r} is there twice; give each text once")
        seen.add(text)
