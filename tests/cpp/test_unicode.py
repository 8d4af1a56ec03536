"""What the C++ library knows of Unicode is what Python and the tokenizers library know."""

import json
import random
import unicodedata

import pytest
from ftfy import chardata
from tokenizers import Regex, pre_tokenizers

POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# Of another general category since Unicode 16 and 17, which newer releases of utf8proc know.
CHANGED = "\U0001171e\u0295"
FORMS = {
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFKC": lambda text: unicodedata.normalize("NFKC", text),
    "lower": str.lower,
}


def asked(program, texts):
    done = program.run("unicode", probe=True, stdin=json.dumps(texts))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def facts(plain):
    return asked(plain, [])


@pytest.fixture(scope="module")
def classes(facts):
    """Per class the set of its characters."""
    ranges = facts["classes"].items()
    return {name: {chr(c) for r in found for c in range(*r)} for name, found in ranges}


@pytest.fixture(scope="module")
def known(classes):
    """The characters that utf8proc and this Python know alike; one may be newer than the other."""
    unknown = classes["unknown"].union(CHANGED)
    found = [c for c in POINTS if c not in unknown and unicodedata.category(c) != "Cn"]
    assert len(found) > 280_000
    return found


def compare(program, texts):
    """Texts of which any form is not Python's: none."""
    found = asked(program, texts)
    for name, form in FORMS.items():
        wanted = [form(text) for text in texts]
        wrong = [t for t, a, b in zip(texts, found[name], wanted, strict=True) if a != b]
        assert [ascii(text) for text in wrong[:10]] == [], name


def test_every_character_alone(plain, known):
    compare(plain, known)


def test_every_character_beside_a_capital_sigma(plain, known):
    """Which characters are cased and which are passed over decides how the sigma is written."""
    compare(plain, [f"{c}\u03a3 a{c}\u03a3 a\u03a3{c} a\u03a3{c}a" for c in known])


SIGMAS = [
    "\u03a3",
    "\u03a3\u03a3",
    "a\u03a3\u03a3",
    "\u039f\u0394\u039f\u03a3 \u039f\u0394\u039f\u03a3.",
    "a'\u03a3'",
    "a\u03a3'a",
    "a.\u0301\u00ad\u03a3\u0301:\u02b0 a",
    "1\u03a3",
    "\u2160\u03a3",
    "\u02b0\u03a3",
]


def test_final_sigma(plain):
    compare(plain, SIGMAS)
    pool = [
        *"aA1 .:'-",
        *"\u03a3\u03a3\u03a3\u03b1\u0301\u0345\u00ad\u02b0\u2160\u24b6\u00aa\u0130",
    ]
    compare(plain, mixed(pool, 20_000, 7))


def mixed(pool, count, longest):
    rng = random.Random(1)
    return ["".join(rng.choices(pool, k=rng.randint(1, longest))) for _ in range(count)]


def test_sequences_that_compose_or_are_put_in_order(plain, known):
    whole = [c for c in known if unicodedata.normalize("NFD", c) != c]
    parts = {p for c in whole for p in unicodedata.normalize("NFD", c)}
    marks = {c for c in known if unicodedata.combining(c)}
    assert len(whole) > 13_000 and len(marks) > 900
    letters = [c for c in whole if not "\uac00" <= c <= "\ud7a3"]
    compare(plain, mixed(sorted(parts | marks) + letters, 100_000, 6))
    compare(plain, [unicodedata.normalize("NFD", c) for c in whole])


def test_every_pair_of_hangul(plain):
    """With U+11A7, which is beside the final consonants and joins no syllable."""
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    syllables = [chr(c) for c in range(0xAC00, 0xAC00 + 3 * 28)]
    compare(plain, [a + b + "\u0301" for a in jamo + syllables for b in jamo + syllables])
    compare(plain, mixed(["\u1100", "\u1161", "\u11a7", "\u11a8", "\uac00", "\u0323"], 5000, 8))


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("plain letter", ("Lu", "Ll", "Lt", "Lo")),
        ("lower", ("Ll",)),
        ("upper", ("Lu", "Lt")),
        ("digit", ("Nd",)),
    ],
)
def test_general_categories(classes, known, name, categories):
    wanted = {c for c in known if unicodedata.category(c) in categories}
    assert classes[name].intersection(known) == wanted


@pytest.mark.parametrize(("name", "pattern"), [("letter", r"\p{L}"), ("number", r"\p{N}")])
def test_letters_and_numbers_are_those_of_the_tokenizers_library(classes, name, pattern):
    """Also those that utf8proc does not know."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    assert classes[name] == {c for c in POINTS if not split.pre_tokenize_str(c)}


def test_spaces_are_those_that_python_splits_at(classes):
    assert classes["space"] == {c for c in POINTS if not c.split()}


def test_code_pages_are_those_that_ftfy_looks_for(facts):
    names = {"latin-1": "iso-8859-1", "macroman": "mac-roman"}
    wanted = {
        names.get(name, name.removeprefix("sloppy-")): decoded(name)
        for name in chardata.CHARMAP_ENCODINGS
    }
    # The sloppy pages have the character of lost bytes here; mojibake.cpp adds it.
    found = {
        name: page.replace("\x1a", "\ufffd") if "windows" in name else page
        for name, page in facts["pages"].items()
    }
    assert found == wanted


def decoded(codec):
    return bytes(range(256)).decode(codec)
