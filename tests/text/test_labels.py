"""Class names by their numbers, in every form of a file."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.errors import InputError
from stan_infer.text.labels import Labels, read_labels, words

NAMES = ("abseiling", "air drumming", "eating, fast", "zumba")
FORMS = {
    "lines, quoted": '"abseiling"\n"air drumming"\n"eating, fast"\n"zumba"\n',
    "lines": "abseiling\nair drumming\neating, fast\nzumba\n",
    "numbered": "0 abseiling\n1 air drumming\n2 eating, fast\n3 zumba",
    "numbered, other order": "3\tzumba\n1\tair drumming\n0\tabseiling\n2\teating, fast\n",
    "number last": "abseiling 0\nair drumming 1\neating, fast 2\nzumba 3\n",
    "csv": 'id,name\n0,abseiling\n1,air drumming\n2,"eating, fast"\n3,zumba\n',
    "csv, other order": 'name;id\n"eating, fast";2\nzumba;3\nabseiling;0\nair drumming;1\n',
    "tsv": "label_id\tlabel\n0\tabseiling\n1\tair drumming\n2\teating, fast\n3\tzumba\n",
    "json list": json.dumps(NAMES),
    "json numbers": json.dumps({name: str(i) for i, name in enumerate(NAMES)}),
    "json names": json.dumps({i: name for i, name in enumerate(NAMES)}),
}


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        path = tmp_path / "labels"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_labels(path, **options)

    return read


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", ["plain", "crlf", "mark", "blank end"])
def test_forms(read, form, change):
    text = FORMS[form]
    data = {
        "plain": text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "mark": text.encode("utf-8-sig"),
        "blank end": f"{text}\n \n".encode(),
    }[change]
    assert read(data) == Labels((0, 1, 2, 3), NAMES)


@pytest.mark.parametrize(
    ("file", "count", "last"),
    [
        ("k400_labels.csv", 400, "zumba"),
        ("ssv2_labels.csv", 174, "Wiping something off of something"),
        ("ssv2_labels_form.json", 174, "Wiping something off of something"),
        ("hmdb51_labels.csv", 51, "wave"),
        ("hmdb51_label_map.txt", 51, "wave"),
    ],
)
def test_public_files(annotations, file, count, last):
    labels = read_labels(annotations / file)
    assert labels.numbers == tuple(range(count)) and labels.names[-1] == last


def test_numbers_keep_what_they_are(read, caplog):
    assert read("1 Archery\n2 Bowling\n") == Labels((1, 2), ("Archery", "Bowling"))
    assert "the numbers before its names are taken for those of classes" in caplog.text
    assert "no name has the number 0; results list the 2 names in the order" in caplog.text
    assert read("a\n\nb\n") == Labels((0, 2), ("a", "b"))
    assert "no name has the number 1; results list" in caplog.text
    assert read('{"a": 2, "b": 5, "c": 9, "d": 11, "e": 20}').numbers == (2, 5, 9, 11, 20)
    assert "no name has the number 0 to 1, 3 to 4, 6 to 8 and 2 more gaps; results" in caplog.text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("digit 0\ndigit 1\n", ("digit 0", "digit 1")),
        ("3 point shot\nrun\n", ("3 point shot", "run")),
        ("3 point shot\n", ("3 point shot",)),
        ('"abseiling"\n"a ""b"""\n', ("abseiling", 'a "b"')),
        ("room 101\nroof 7\n", ("room 101", "roof 7")),
        ("action, comedy\nrun\n", ("action, comedy", "run")),
        ("a\x0bb\x85c\u2028d\nrun\n", ("a\x0bb\x85c\u2028d", "run")),
    ],
)
def test_names_with_numbers_commas_and_odd_spaces(read, text, names):
    assert read(text).names == names


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text("abc xyz_-'", min_size=1).filter(str.strip), min_size=1, unique_by=str.strip
    )
)
def test_any_names_are_the_same_in_every_form(tmp_path_factory, names):
    names = [n.strip() for n in names]
    path = tmp_path_factory.getbasetemp() / "any-labels"
    wanted = tuple(names)
    for text in (
        "\n".join(names),
        "\n".join(f"{i} {n}" for i, n in enumerate(names)),
        "id,name\n" + "\n".join(f"{i},{n}" for i, n in enumerate(names)),
        json.dumps({n: i for i, n in enumerate(names)}),
    ):
        path.write_text(text, newline="")
        assert read_labels(path).names == wanted, text


def test_names_as_words(read, caplog):
    with caplog.at_level(logging.WARNING):
        assert read("brush_hair\nApplyEyeMakeup\nrun\n").names[0] == "brush_hair"
        assert "--split-words makes them 'brush hair'" in caplog.text
        labels = read("brush_hair\nApplyEyeMakeup\nrun\n", split_words=True)
    assert labels.names == ("brush hair", "Apply Eye Makeup", "run")
    assert "2 of 3 names are written as words: 'brush_hair' as 'brush hair'" in caplog.text
    assert words("TaiChi") == "Tai Chi" and words("YoYo") == "Yo Yo"
    assert words("USA") == "USA" and words("Running fast") == "Running fast"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; give one name per line"),
        ("a\nb\na\n", "the name 'a' is there twice"),
        ("0 a\n0 b\n", "2 of 2 lines begin with a number"),
        ("2 dogs\n3 cats\n", "2 of 2 lines begin with a number, but not all with 0 to 1"),
        ("idx,classname\n0,a\n1,b\n", "2 of 3 lines begin with a number"),
        ("id name\n0 a\n1 b\n2 c\n", "3 of 4 lines begin with a number"),
        (",classname\n0,a\n1,b\n", "2 of 3 lines begin with a number"),
        ('"0","a"\n"1","b"\n', "2 of 2 lines begin with a number"),
        ("1. a\n2. b\n", "2 of 2 lines begin with a number"),
        ("0=a\n1=b\n", "2 of 2 lines begin with a number"),
        ("0 a\n1\n2 c\n", "3 of 3 lines begin with a number"),
        ("# classes\na\nb\n", "its first line is a comment"),
        ("0,a,\n1,b,\n", "'a,' is not the name of a class"),
        ('id,name\n0,"a\n1,b\n', "line 2: a quote at the start of a cell is not closed"),
        ("id,name\n0,a\nx,b\n", "line 3: 'x' is not the number of a class"),
        ("id,name\n0,a\n1\n", "line 3: 1 cells, where the header has 2"),
        ("label,foo\na,1\nb,2\n", "the header 'label,foo' needs a column of numbers"),
        ('{"a": "x"}', "'a' has no whole number"),
        ('{"a": 1, "b": 1}', "the number '1' is there twice"),
        ("[1, 2]", "'1' is not the name of a class"),
        (b"caf\xe9", "is no UTF-8 text"),
    ],
)
def test_wrong_files_are_told(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)
