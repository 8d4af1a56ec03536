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
# While lines are broken, these stand for hyphens, and for blanks in brackets.
_HYPHEN, _BLANK = "\N{NON-BREAKING HYPHEN}", "\N{NO-BREAK SPACE}"
_TYPE = re.compile(r" <[^<>]*>$")  # which typer puts behind the name of an argument
_BRACKETS = re.compile(r"\[[^][]{,30}\]$")  # what typer adds: the default, the range, "required"
_RANGES = (
    (re.compile(r"(\S+)<=x<=(\S+)(?=[];])"), r"\1 to \2"),
    (re.compile(r"x>=(\S+)(?=[];])"), r"at least \1"),
)


class Command(TyperCommand):
    """A command whose options that take one value are given once, and no value is empty."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise InputError for an option that is given twice, of which one value would be lost.

        Also for an empty value, as of a variable of the shell that is not set: of a path it would
        be the current folder, of many options the default.
        """
        if not ctx.resilient_parsing:  # that is the completion of a shell
            values, _, order = self.make_parser(ctx).parse_args(args=list(args))
            if not any("--help" in parameter.opts for parameter in order):
                _check_given_once(order, args)
                _check_not_empty(order, values)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As CKPT VIDEOS..., without the braces that typer puts around what is required."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def get_help(self, ctx: Any) -> str:
        """The help, in which lines end neither at hyphens nor within brackets."""
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
        super().write_text(text.replace("-", _HYPHEN))  # type: ignore[misc]

    def write_dl(self, rows: Any, *args: Any, **options: Any) -> None:
        found = [(_TYPE.sub("", name), _in_words(text)) for name, text in rows]
        super().write_dl(found, *args, **options)  # type: ignore[misc]

    def write(self, string: str) -> None:
        super().write(string.replace(_HYPHEN, "-").replace(_BLANK, " "))  # type: ignore[misc]


def _in_words(text: str) -> str:
    """The help of an option with its range as "1 to 64", not "1<=x<=64"."""
    text = text.replace("\\[", "[")  # typer 0.18 writes it so
    for pattern, words in _RANGES:
        text = pattern.sub(words, text)
    return _BRACKETS.sub(lambda m: m[0].replace(" ", _BLANK), text).replace("-", _HYPHEN)


def _check_given_once(order: list[Any], args: list[str]) -> None:
    """order: the parameters in the order in which they were given, as `args`."""
    options = [p for p in order if p.param_type_name == "option"]
    for option, count in Counter(options).items():
        # --json twice says the same; --smooth and --no-smooth do not.
        says_one = option.is_flag and not all(
            {*names} & {*args} for names in (option.opts, option.secondary_opts)
        )
        if count > 1 and not (option.multiple or option.count or says_one):
            raise InputError(
                f"{_named(option)} is given {count} times, but takes one value: give it once"
            )


def _check_not_empty(order: list[Any], values: dict[str, Any]) -> None:
    for parameter in order:
        given = values.get(parameter.name)
        if "" in (given if isinstance(given, list | tuple) else [given]):
            raise InputError(f"{_named(parameter)} is empty (a variable that is not set?)")


def _named(parameter: Any) -> str:
    """The name of a parameter as its help has it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    return "/".join([*parameter.opts, *parameter.secondary_opts])
