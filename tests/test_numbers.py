"""Numbers in text are ASCII digits as people write them, and finite."""

import pytest

from stan_infer.errors import number, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("12", 12), ("-3", -3), ("+7", 7), ("007", 7)],
)
def test_whole_numbers(text, value):
    assert whole(text) == value and number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("-2.5E+2", -250.0)],
)
def test_numbers(text, value):
    assert number(text) == value
    with pytest.raises(ValueError, match="no whole number"):
        whole(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1_0",
        " 5",
        "5 ",
        "5\n",
        "٥",
        "５",
        "²",
        "0x10",
        "1e1_0",
        "nan",
        "inf",
        "1e999",
        ".",
        "e5",
    ],
)
def test_what_is_none(text):
    for read in (whole, number):
        with pytest.raises(ValueError, match="is no"):
            read(text)
