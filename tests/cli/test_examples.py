"""The examples at the end of every help: each parses, and what the demo can run is run."""

import os

import pytest

from stan_infer.cli.examples import EXAMPLES
from tests.cli.leaves import help_of, leaves
from tests.conftest import ROOT, quicken, quieten
from tests.test_pages import commands, invoke

# Not run: data that are not here, minutes of work (README.md runs a bench and a calibrate), more
# than the demo's ten clips, cameras, or what does not end.
NOT_RUN = ("--dataset msrvtt", "--format tensorrt", "calibrate ", "bench ", "serve ")
NOT_RUN += ("/dev/video0 ", "rtsp://")


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(leaves())
    assert all(2 <= len(commands(text)) <= 3 for text in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_parse_and_stand_in_the_help_as_they_are(name):
    command, shown = leaves()[name], help_of(name)
    lines = EXAMPLES[name].splitlines()
    assert shown.rstrip().endswith("\n".join(f"  {line}" for line in lines))
    assert all(len(line) <= 77 for line in lines)
    for words in commands(EXAMPLES[name]):
        count = len(name.split())
        assert " ".join(words[:count]) == name
        words = words[count - 1 :]
        given = words[1 : words.index(">")] if ">" in words else words[1:]
        parser = command.make_parser(command.context_class(command))
        values, rest, _ = parser.parse_args(args=list(given))
        needed = [p.name for p in command.params if p.required and not values.get(p.name)]
        assert not rest and not needed, words


def test_a_wrong_example_is_found(monkeypatch):
    monkeypatch.setitem(EXAMPLES, "doctor", "stan-infer doctor --jsonn\n")
    with pytest.raises(Exception, match="jsonn"):
        test_examples_parse_and_stand_in_the_help_as_they_are("doctor")


def test_examples_run(tmp_path, monkeypatch):
    quicken(monkeypatch)
    quieten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    demo = ROOT / "examples" / "motion"
    for name in ("labels.txt", "clips.csv"):
        os.symlink(demo / name, name)
    os.symlink(demo / "motion.safetensors", "best.pth")
    os.symlink(demo / "clips", "videos")
    for name in ("clip.mp4", "film.mp4"):
        os.symlink(demo / "clips" / "red_cross_moves_left.mp4", name)
    (tmp_path / "texts.txt").write_text("a dog runs\n")
    first = ("export", "embed")  # what they write, others read
    found = [words for name in (*first, *EXAMPLES) for words in commands(EXAMPLES[name])]
    wanted = [w for w in found if not any(part in f"{' '.join(w)} " for part in NOT_RUN)]
    ran = {w[0] for w in wanted if invoke(w) is not None}
    assert ran == {name.split()[0] for name in EXAMPLES} - {"calibrate", "bench", "serve"}
