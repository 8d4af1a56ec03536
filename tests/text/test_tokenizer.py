"""Token ids against the authors' (golden), against open_clip's tokenizer, and hostile input."""

import gzip
import importlib.util
import json
import logging
import shutil
import sys
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stan_infer.errors import InputError, MissingError
from stan_infer.system.packages import install_command
from stan_infer.text import vocabulary as module
from stan_infer.text.tokenizer import cut_texts, tokenize
from stan_infer.text.vocabulary import END, START, write_vocabulary
from tests.conftest import edit_json, python

SPELLED = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")
# Without unassigned characters: the libraries differ in the version of Unicode that they know.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
PIECES = st.sampled_from([
    "a dog's", "'S", "'ſ", "we'LL ", " \t\u00a0\u3000", "&amp;", "&amp;amp;", "&lt;b&gt;", "ﬁ", "ß",
    "İ", "12٣", "!!$!%", "â€™", "é", "e\u0301", "\u0345", "👩‍👩‍👧", "漢字", "_", "\x1f", "\u2028",
])  # fmt: skip
TEXTS = st.lists(st.text(CHARACTERS, max_size=12) | PIECES, max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokens(golden):
    z = np.load(golden / "tokens.npz")
    return {k: z[k] for k in z} | {"texts": json.loads(str(z["texts"]))}


@pytest.fixture(scope="module")
def openclip():
    """open_clip's tokenizer. Tests that use it are slow: importing open_clip takes 4 to 7 s."""
    return pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()


@pytest.fixture(scope="module")
def openai():
    """The same code with the special tokens spelled as OpenAI, and so the release, spells them."""
    regex = pytest.importorskip("regex")
    oracle = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    words = {"<|startoftext|>": START, "<|endoftext|>": END}
    oracle.encoder |= words
    oracle.cache = {word: word for word in words}
    rest = oracle.pat.pattern.removeprefix("<start_of_text>|<end_of_text>")
    assert rest.startswith("|'s|")
    oracle.pat = regex.compile("|".join(map(regex.escape, words)) + rest, regex.IGNORECASE)
    return oracle


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    write_vocabulary(path)
    return path


@pytest.mark.parametrize("length", [77, 64, 32])
def test_ids_equal_the_release(tokens, length):
    got = tokenize(tokens["texts"], length, truncation="authors")
    assert got.dtype == np.int64
    assert len(got) == 72
    np.testing.assert_array_equal(got, tokens[f"ids_{length}"])


def test_cut_texts_are_those_pooled_at_the_start(tokens):
    cut = cut_texts(tokens["texts"], 32)
    assert cut == np.nonzero(tokens["pooled_position_32"] == 0)[0].tolist()
    assert cut
    assert cut_texts(tokens["texts"], 77) == []


@pytest.mark.parametrize("length", [3, 5, 16, 32, 64, 77])
def test_keep_eot_equals_openclip(tokens, openclip, length):
    texts = [t for t in tokens["texts"] if not any(s in t for s in SPELLED)]
    assert len(texts) >= 68
    np.testing.assert_array_equal(tokenize(texts, length), openclip(texts, length).numpy())


@settings(max_examples=300, deadline=None)
@given(text=TEXTS.filter(lambda t: not any(s in t.lower() for s in SPELLED)))
@example(text=":\u00d6\x8b")  # ftfy makes U+058B of it, which regex 2026.11 calls a letter
def test_any_text_equals_openclip(openclip, text):
    import ftfy

    # The package regex may know a newer Unicode than this Python, where these are no letters yet.
    assume(all(unicodedata.category(c) != "Cn" for c in ftfy.fix_text(text)))
    np.testing.assert_array_equal(tokenize(text, 77), openclip(text, 77).numpy())


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPELLED[2:], "!", "<|", "|>", "a", " ", "1", "'s"])))
def test_special_tokens_in_a_text_equal_openai(openai, parts):
    text = "".join(parts)
    np.testing.assert_array_equal(tokenize(text, 77), openai(text, 77).numpy())


def test_one_string_is_one_text():
    np.testing.assert_array_equal(tokenize("a dog runs"), tokenize(["a dog runs"]))
    assert tokenize("")[0, :3].tolist() == [START, END, 0]
    np.testing.assert_array_equal(tokenize(np.array(["a dog", "b"])), tokenize(("a dog", "b")))


@pytest.mark.parametrize(
    ("rule", "length", "what"),
    [
        ("keep-eot", 8, "only their first 6 tokens"),
        ("authors", 8, "the same embedding"),
        ("authors", 77, "only their first 75 tokens"),
    ],
)
def test_one_warning_names_what_does_not_fit(caplog, rule, length, what):
    texts = ["fits", "x " * 90, "fits too", "line\n" * 90]
    with caplog.at_level(logging.WARNING):
        tokenize(texts, length, truncation=rule)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"2 of 4 texts do not fit in {length} tokens")
    assert what in message
    assert f"1 {texts[1][:40]!r}, 3 {texts[3][:40]!r}" in message
    assert "\n" not in message


def test_no_warning_when_all_fit(caplog):
    tokenize(["a dog " * 15, "x"])  # 30 tokens, start and end
    assert not caplog.records
    tokenize(["x " * 100] * 30)
    assert "and 10 more" in caplog.text


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "empty list"),
        (["a", 3], {}, "text 1 is a int"),
        (None, {}, "texts are a NoneType"),
        (b"ab", {}, "text 0 is a int"),
        (["a", "x" * 10_001], {}, "text 1 has 10001 characters.*--labels"),
        ("a", {"context_length": 2}, "context_length is 2; allowed are 3 to 77"),
        ("a", {"context_length": 78}, "allowed are 3 to 77"),
        ("a", {"context_length": 8.0}, "allowed are 3 to 77"),
        ("a", {"truncation": "author"}, "did you mean 'authors'"),
    ],
)
def test_wrong_input_is_told(texts, options, message):
    with pytest.raises(InputError, match=message):
        tokenize(texts, **options)


NO_TEXT = (
    "&#" + "9" * 5000 + ";", "\ud800", "\udc00" * 40, "a\ud800b", "\0", "a\0b", "&#0;", "&#xd800;",
    "\ud83d\ude00",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_TEXT)
def test_surrogates_and_nuls_have_ids(text):
    ids = tokenize(text)
    assert ids[0, 0] == START and END in ids


HOSTILE = {  # what else may take long: tests/hostile/test_linear_time.py
    "random word": "".join(map(chr, np.random.default_rng(0).integers(97, 123, 10_000))),
    "mojibake": "Ãƒâ€šÃ‚" * 1_250,
    "latin-1": "".join(map(chr, np.random.default_rng(0).integers(128, 256, 10_000))),
    "half an entity": "&#x" + "1" * 9_990,
    "marks": "e" + "\u0301" * 9_999,
    "emoji": "👩‍👩‍👧" * 2_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_bounded_time(name):
    tokenize("warm up")
    begin = time.process_time()
    assert tokenize(HOSTILE[name]).shape == (1, 32)
    assert time.process_time() - begin < 2  # s; the slowest takes 0.09 on one core


def test_written_vocabulary_gives_the_same_ids(tokens, written):
    for length in (32, 77):
        np.testing.assert_array_equal(
            tokenize(tokens["texts"], length, vocabulary=written), tokenize(tokens["texts"], length)
        )
    assert cut_texts(tokens["texts"], vocabulary=written) == cut_texts(tokens["texts"])


def test_written_vocabulary_works_in_the_library_alone(written):
    loaded = pytest.importorskip("tokenizers").Tokenizer.from_file(str(written))
    assert loaded.get_vocab_size() == 49408
    assert loaded.encode("a dog runs").ids == tokenize("a dog runs")[0, :5].tolist()
    assert loaded.token_to_id("<|endoftext|>") == END


def test_no_open_clip_is_needed(written, tmp_path, monkeypatch):
    module._clip.cache_clear()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    wanted = tokenize("a dog", vocabulary=written)
    np.testing.assert_array_equal(tokenize("a dog"), wanted)
    write_vocabulary(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == written.read_bytes()
    assert "Copyright (c) 2021 OpenAI" in (tmp_path / "LICENSE-CLIP.txt").read_text()


def test_the_vocabulary_is_open_clips():
    (folder,) = importlib.util.find_spec("open_clip").submodule_search_locations
    lines = gzip.open(f"{folder}/bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8").readlines()
    merges = module._clip_merges()
    assert merges == [tuple(line.split()) for line in lines[1:48895]]


@pytest.mark.parametrize("package", ["ftfy", "tokenizers"])
def test_missing_package_is_told(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=package) as error:
        tokenize("a dog")
    assert install_command("runtime") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [None, b"\x1f\x8bno", gzip.compress(b"a b\n"), b""],
    ids=["none", "head", "short", "empty"],
)
def test_damaged_installed_vocabulary_is_told(monkeypatch, tmp_path, content):
    path = tmp_path / "clip_merges.txt.gz"
    monkeypatch.setattr(module, "_MERGES_FILE", path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingError, match="missing or damaged.*force-reinstall"):
        module._clip_merges()


def test_tokenizing_imports_no_torch():
    code = (
        "import sys, stan_infer.text.tokenizer as t; t.tokenize('a dog');"
        "assert not {'torch', 'torchvision', 'open_clip'} & set(sys.modules)"
    )
    python("-c", code)


CHANGES = {
    "another id": lambda c: c["model"]["vocab"].update({"dog</w>": 7}),
    "one entry more": lambda c: c["model"]["vocab"].update({"newword": 49408}),
    "other special ids": lambda c: c["model"]["vocab"].update({"<|endoftext|>": 0}),
    "merges in another order": lambda c: c["model"]["merges"].insert(
        0, c["model"]["merges"].pop(1)
    ),
    "a merge less": lambda c: c["model"]["merges"].pop(),
    "a merge of three": lambda c: c["model"]["merges"].__setitem__(0, ["a", "b", "c"]),
    "numbers as merges": lambda c: c["model"].update(merges=[[1, 2]] * 48894),
    "another model": lambda c: c["model"].update(type="WordPiece"),
    "no suffix": lambda c: c["model"].update(end_of_word_suffix=None),
    "another pattern": lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(
        Regex="(a+)+$"
    ),
    "a normalizer": lambda c: c.update(normalizer={"type": "Lowercase"}),
    "added tokens": lambda c: c.update(added_tokens=[{"id": 1, "content": "dog"}]),
    "no model": lambda c: c.pop("model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_strangers_vocabulary_is_refused(written, tmp_path, name):
    path = shutil.copy(written, tmp_path / "tokenizer.json")
    edit_json(path, CHANGES[name])
    with pytest.raises(InputError, match="is not a tokenizer.json as export writes it"):
        tokenize("a dog", vocabulary=path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe\0", b"[" * 10**6, b'{"model": null}']
)
def test_a_broken_vocabulary_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a tokenizer.json as export writes it"):
        tokenize("a dog", vocabulary=path)


def test_a_large_or_missing_vocabulary_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as f:
        f.truncate(16 * 2**20 + 1)
    with pytest.raises(InputError, match="allowed are 16777216"):
        tokenize("a dog", vocabulary=path)
    for other in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="is not a file"):
            tokenize("a dog", vocabulary=other)


def test_older_spelling_of_merges_is_read(written, tmp_path):
    path = shutil.copy(written, tmp_path / "tokenizer.json")
    edit_json(path, lambda c: c["model"].update(merges=[*map(" ".join, c["model"]["merges"])]))
    np.testing.assert_array_equal(tokenize("a dog runs", vocabulary=path), tokenize("a dog runs"))


@pytest.mark.parametrize(
    ("number", "same"),
    [("9" * 5000, "&#xfffd;"), ("0" * 5000 + "65", "a"), ("00", "&#0;"), ("1114112", "\ufffd")],
)
def test_numbers_of_characters_beyond_pythons_limit_of_digits(number, same):
    assert tokenize(f"x &#{number}; y").tolist() == tokenize(f"x {same} y").tolist()
