"""Prompt templates: the sets are those of their sources, and averaging is CLIP's."""

import json

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.text.templates import Templates, read_templates, template_sets
from tests.conftest import ROOT


def test_sets_are_complete_and_say_where_they_are_from():
    data = json.loads((ROOT / "stan_infer/text/templates.json").read_text())
    assert {n: len(s) for n, s in template_sets().items()} == {
        "openai-80": 80,
        "kinetics-28": 28,
        "kinetics-16": 16,
    }
    for name, found in template_sets().items():
        assert len(set(found)) == len(found) and all(s.count("{}") == 1 for s in found)
        assert "/" in data["sets"][name]["source"]
    assert data["licence"]["name"] == "MIT" and len(data["licence"]["copyright"]) == 2


def test_openai_80_is_that_of_open_clip():
    found = pytest.importorskip("open_clip.zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES
    assert [make("{}") for make in found] == list(template_sets()["openai-80"])


def test_words_are_sentences_or_sets():
    both = read_templates(["a video of {}", "kinetics-16"])
    assert both.sentences == ("a video of {}", *template_sets()["kinetics-16"])
    assert both.named == "a video of {} | kinetics-16 (17 averaged)"
    assert read_templates("{}, {x}") == Templates(("{}, {x}",), ("{}, {x}",))
    assert read_templates("kinetics-28 {}").sentences == ("kinetics-28 {}",)
    assert Templates(("x",), ("a {}", "b {}")).fill(["{}", "1"]) == ["a {}", "b {}", "a 1", "b 1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("no place", "needs one {}"),
        ("{} and {}", "needs one {}"),
        ("openai80", "did you mean 'openai-80'"),
        ("", "needs one {}"),
        ([], "no template"),
        (["a {}", "a {}"], "there twice"),
        (["{}", "kinetics-16"], "there twice"),
        ([f"{i} {{}}" for i in range(1001)], "allowed are 1000"),
    ],
)
def test_bad_words(words, says):
    with pytest.raises(InputError, match=says):
        read_templates(words)


def test_a_blank_text_does_not_hide_in_a_sentence():
    with pytest.raises(InputError, match=r"text 1 is blank \(' '\); give words"):
        read_templates("a video of {}").fill(["a dog", " "])


def test_averaging_is_that_of_clip():
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 7
    got = Templates(("s",), ("a {}", "b {}", "c {}")).average(features)
    for row, three in zip(got, features.astype(np.float64).reshape(2, 3, 5), strict=True):
        mean = sum(x / np.sqrt((x * x).sum()) for x in three) / 3
        assert row == pytest.approx(mean / np.sqrt((mean * mean).sum()), abs=1e-6)
    assert got.dtype == np.float32
    assert Templates().average(features) is features


def test_tokens_are_not_averaged():
    tokens = np.zeros((4, 3, 5), np.float32)
    assert Templates().average(tokens) is tokens
    with pytest.raises(InputError, match="Mug head"):
        Templates(("a {}", "b {}"), ("a {}", "b {}")).average(tokens)
