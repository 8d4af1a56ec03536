"""How a command line is taken apart and how its help is laid out, for all commands alike."""

from __future__ import annotations

import re
import signal
from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperGroup

from stan_infer.errors import InputError
from stan_infer.system.signals import EndedBySignal

HELP_WIDTH = 120  # at most; on a narrower terminal its width
_UNBROKEN = "\N{NON-BREAKING HYPHEN}"
_TYPE = re.compile(r" <[^<>]*>$")  # which typer puts behind the name of an argument
_RANGES = (
    (re.compile(r"(\S+)<=x<=(\S+)(?=[];])"), r"\1 to \2"),
    (re.compile(r"x>=(\S+)(?=[];])"), r"at least \1"),
)


class Command(TyperCommand):
    """A command whose options that take one value are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise InputError for an option that is given twice: one of the values would be lost."""
        if not ctx.resilient_parsing:  # that is the completion of a shell
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            _check_given_once(order)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As CKPT VIDEOS..., without the braces that typer puts around what is required."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def get_help(self, ctx: Any) -> str:
        """The help, in which no name is broken at a hyphen."""
        kind = type("Formatter", (_WholeWords, ctx.formatter_class), {})
        formatter = kind(width=ctx.terminal_width, max_width=ctx.max_content_width)
        self.format_help(ctx, formatter)
        return str(formatter.getvalue().rstrip("\n"))


class Program(TyperGroup):
    """The program with its commands."""

    def invoke(self, ctx: Any) -> Any:
        """Hand Ctrl-C on to `main`: typer would end the program without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise EndedBySignal(signal.SIGINT) from e


class _WholeWords:
    """Goes before a formatter of click, which breaks lines at hyphens."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _UNBROKEN))  # type: ignore[misc]

    def write_dl(self, rows: Any, *args: Any, **options: Any) -> None:
        found = [(_TYPE.sub("", name), _in_words(text)) for name, text in rows]
        super().write_dl(found, *args, **options)  # type: ignore[misc]

    def write(self, string: str) -> None:
        super().write(string.replace(_UNBROKEN, "-"))  # type: ignore[misc]


def _in_words(text: str) -> str:
    """The help of an option with its range as "1 to 64", not "1<=x<=64"."""
    for pattern, words in _RANGES:
        text = pattern.sub(words, text)
    return text.replace("-", _UNBROKEN)


def _check_given_once(order: list[Any]) -> None:
    """order: the parameters in the order in which they were given."""
    options = [p for p in order if p.param_type_name == "option"]
    if any("--help" in option.opts for option in options):
        return
    for option, count in Counter(options).items():
        is_word = option.is_flag and not option.secondary_opts  # as --json: twice is no other
        if count > 1 and not (option.multiple or option.count or is_word):
            names = "/".join([*option.opts, *option.secondary_opts])
            raise InputError(f"{names} is given {count} times, but takes one value: give it once")
