"""doctor says no where decoding is broken or its pixels are wrong, yes where both are right."""

import importlib.util
import textwrap

import pytest

from stan_infer.engines.trials import try_decoders
from stan_infer.system.packages import install_command
from stan_infer.video import decoder_trial
from stan_infer.video.decoder_trial import decode_own_clip, picture

DECODERS = [
    "pyav",
    pytest.param(
        "decord",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("decord") is None, reason="decord is not installed"
        ),
    ),
]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Code that runs in every Python process started from here, before anything else."""

    def write(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return write


def pyav() -> dict:
    return next(row for row in try_decoders() if row["name"] == "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_clip_decodes_to_what_was_drawn(decoder):
    decode_own_clip(decoder)


def test_an_open_that_does_not_take_what_we_give(broken):
    """As it was with PyAV 19, while its codecs could be created."""
    broken("""
        import av
        def open(file, mode="r", container_options=None):
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        av.open = open
    """)
    row = pyav()
    assert not row["works"] and "unexpected keyword argument" in row["reason"]
    assert "pip install" in row["help"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("InvalidDataError(1094995529, 'Invalid data found')", "Invalid data found"),
        ("ArgumentError(22, 'Invalid argument')", "its name looks like something else"),
    ],
)
def test_a_clip_of_our_own_is_not_blamed(broken, error, reason):
    broken(f"""
        import av
        def open(*given, **named):
            raise av.error.{error}
        av.open = open
    """)
    for row in try_decoders():
        if row["name"] == "decord" and importlib.util.find_spec("decord") is None:
            continue
        told = f"{row['name']} does not decode doctor's own clip: {reason}"
        assert not row["works"] and row["reason"].startswith(told), row
        assert "/" not in row["reason"] and "fetch" not in row["reason"]
        assert row["help"] == install_command("runtime", options="--force-reinstall")


def test_a_tmpdir_that_is_missing_is_not_mended_by_a_package(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    row = pyav()
    assert "cannot take a clip" in row["reason"] and row["help"] == "see the reason"


def test_a_decoder_that_does_not_load(broken, tmp_path):
    (tmp_path / "av.py").write_text("raise RuntimeError('another FFmpeg')")
    broken("")
    row = pyav()
    assert not row["works"], row
    assert "needs av, which does not load (RuntimeError: another FFmpeg)" in row["reason"]
    assert "--force-reinstall" in row["help"]


def test_pixels_that_are_slightly_wrong(broken):
    broken("""
        from stan_infer.video import pyav_reader as decoders
        right = decoders._rgb
        decoders._rgb = lambda path, frame: right(path, frame) // 16 * 16 + 15
    """)
    row = pyav()
    assert not row["works"] and "wrong pixels: frame 0" in row["reason"]


def test_a_neighbouring_frame(monkeypatch):
    monkeypatch.setattr(decoder_trial, "picture", lambda i: picture(i + 1))
    with pytest.raises(RuntimeError, match="frame 0 of a known clip is off by 2[0-9]"):
        decode_own_clip("pyav")


def test_red_and_blue_exchanged(monkeypatch):
    monkeypatch.setattr(decoder_trial, "picture", lambda i: picture(i)[..., ::-1])
    with pytest.raises(RuntimeError, match="wrong pixels"):
        decode_own_clip("pyav")


def test_no_decoder_here(broken):
    broken("import sys; sys.modules['av'] = None")
    row = pyav()
    assert not row["works"] and "needs av" in row["reason"]
