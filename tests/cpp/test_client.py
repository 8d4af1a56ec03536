"""The C++ program gives what the Python package gives: embeddings, rankings, frames, token ids."""

import hashlib
import html.entities
import itertools
import json
import random
from dataclasses import replace

import ftfy
import numpy as np
import pytest

import stan_infer as si
from stan_infer.video.clip import read_clip_info
from stan_infer.video.spec import ClipSpec
from tests.conftest import quicken
from tests.cpp.conftest import MOTION, make_exported, ort_library
from tests.traced import traced

CLIPS = sorted((MOTION / "clips").glob("*.mp4"))


@pytest.fixture(scope="module")
def session(exported):
    return si.open_session(str(exported), engine="ort")


def test_self_test_passes(plain, exported, engine):
    answer = plain.json(exported, "--self-test", "--json", "--engine", engine, "--threads", "2")
    names = [s["stage"] for s in answer["stages"]]
    assert names[:4] == ["decode", "preprocess", "video_embeds", "frame_embeds"]
    assert names[4:] == ["input_ids", "text_embeds", "token_embeds", "scores"]
    for stage in answer["stages"]:
        assert stage["pass"] is True and "note" not in stage, stage
        if stage["stage"] != "preprocess":
            assert stage["error"] < 1e-5, stage


def test_self_test_passes_with_sanitizers(sanitized, exported):
    done = sanitized.run(exported, "--self-test")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module", params=["mug", "mug_frame_token"])
def mug(request, labels):
    model = si.load_model(str(MOTION / "motion.safetensors"), {"head": request.param})
    return make_exported(model, labels=labels)


def test_mug_heads(plain, labels, mug, engine):
    assert plain.run(mug, "--self-test", "--engine", engine).returncode == 0
    compare_ranking(plain, mug, CLIPS[0], labels, "--engine", engine)
    compare_ranking(plain, mug, CLIPS[0], labels, "--engine", engine, own=False)


@pytest.mark.parametrize("options", [{"input": "float"}, {"batch": 2, "frames": 5}], ids=str)
def test_other_forms_of_the_video_graph(plain, model, options):
    out = make_exported(model, **options)
    assert plain.run(out, "--self-test").returncode == 0
    frames = options.get("frames", model.config.frames)
    clip = read_clip_info(CLIPS[0], replace(ClipSpec.of(model.config), frames=frames)).pixels
    session = si.open_session(str(MOTION / "motion.safetensors"))
    wanted = np.asarray(session.embed_video(clip[None]))[0]
    got = np.array(plain.json(out, CLIPS[0], "--embed", "--json")["embedding"])
    assert cosine(got, wanted) > 0.9999


@pytest.fixture(scope="module")
def in_8_bits(exported, tmp_path_factory):
    from stan_infer.quantisation.calibrate import calibrate
    from stan_infer.quantisation.options import CalibrationOptions

    folder = tmp_path_factory.mktemp("8 bits") / "int8"
    options = CalibrationOptions(samples=3, force=True, min_cosine=0.99, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        calibrate(exported, CLIPS, folder, options)
    return folder


def test_a_folder_in_8_bits(plain, in_8_bits, engine):
    assert plain.run(in_8_bits, "--self-test", "--engine", engine).returncode == 0
    session = si.open_session(in_8_bits, engine)
    wanted = np.asarray(session.embed_video(session.read_clip(CLIPS[0])[None]))[0]
    command = (in_8_bits, CLIPS[0], "--embed", "--json", "--engine", engine)
    assert cosine(np.array(plain.json(*command)["embedding"]), wanted) > 0.9999


def test_labels_in_the_graph(plain, model, labels):
    folder = make_exported(model, head="classify", labels=labels)
    assert plain.run(folder, "--self-test").returncode == 0
    compare_ranking(plain, folder, CLIPS[0], labels, own=False)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda p: p.stem)
def test_embeddings_of_video_files(plain, exported, session, clip, engine):
    answer = plain.json(exported, clip, "--embed", "--json", "--engine", engine)
    wanted = session.embed_video(session.read_clip(clip)[None])[0]
    assert cosine(np.array(answer["embedding"]), wanted) > 0.9999


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def hundred_texts():
    colours, shapes = ("red", "green", "blue", "cyan", "purple"), ("square", "cross", "bar")
    motions = ("moves left", "moves right", "moves up", "grows", "shrinks", "blinks", "fades in")
    every = itertools.product(colours, shapes, motions)
    return [f"a {c} {s} {m}" for c, s, m in every][:100]


def compare_ranking(program, folder, clip, texts, *options, own=True):
    session = si.open_session(str(folder), engine="ort")
    scores = session.score(texts, session.read_clip(clip)[None])[:, 0]
    given = [x for t in texts for x in ("--text", t)] if own else []
    answer = program.json(folder, clip, *given, "--top", "0", "--json", *options)["scores"]
    best = [texts[i] for i in np.argsort(-scores, kind="stable")]
    if not session.config.is_mug:  # there, texts that begin alike may have one and the same score
        assert [r["text"] for r in answer] == best
    by_text = {r["text"]: r for r in answer}
    assert max(abs(by_text[t]["score"] - s) for t, s in zip(texts, scores, strict=True)) < 1e-5
    assert abs(sum(r["probability"] for r in answer) - 1) < 1e-9


def test_ranking_of_a_hundred_texts(plain, exported, engine):
    compare_ranking(plain, exported, CLIPS[3], hundred_texts(), "--engine", engine)


def test_labels_as_a_table(plain, exported, labels):
    compare_ranking(plain, exported, CLIPS[3], labels, own=False)
    done = plain.run(exported, CLIPS[3], "--top", "2")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 and done.stderr == ""
    assert done.stdout.splitlines()[0].split("  ")[-1] in labels


def test_a_text_that_is_cut_is_named(plain, exported):
    done = plain.run(exported, CLIPS[0], "--text", "very " * 40 + "long", "--text", "short")
    assert done.returncode == 0
    assert done.stderr.count("warning:") == 1 and "only the first 30 tokens" in done.stderr


# Frames


@pytest.mark.parametrize("t", [1, 8, 12])
def test_frames_are_those_of_python(plain, golden, tmp_path, t):
    """Numbers and, at least here, decoded pixels equal. Rotation included."""
    for video in [*sorted((golden / "clips").glob("*.mp4")), *CLIPS[:3]]:
        answer = plain.json("frames", video, str(t), tmp_path / "raw", probe=True)
        shape = answer["shapes"][0]
        assert all(s == shape for s in answer["shapes"])
        raw = np.fromfile(tmp_path / "raw", np.uint8).reshape(t, *shape[1:])
        side = min(shape[1:3])
        spec = ClipSpec(frames=t, short_side=side, crop=side, decoder="pyav")
        clip = read_clip_info(video, spec)
        assert (answer["indices"], answer["total"]) == (clip.indices.tolist(), clip.total_frames)
        assert tuple(shape[1:3]) == clip.source_size
        top, left = (shape[1] - side) // 2, (shape[2] - side) // 2
        mine = raw[:, top : top + side, left : left + side]
        np.testing.assert_array_equal(mine, clip.pixels, video.name)


def test_hashes(plain, tmp_path):
    data = bytes(i * 37 % 256 for i in range(300))
    (tmp_path / "file").write_bytes(data)
    right = [hashlib.sha256(data[:n]).hexdigest() for n in range(301)]
    assert plain.json("sha256", tmp_path / "file", probe=True) == right * 2


# Token ids


def ids_of(program, exported, texts):
    """Per text its ids, or None where it is refused."""
    done = program.run(
        "tokens", exported / "tokenizer.json", probe=True, stdin=json.dumps(list(texts))
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert all("wrong character set" in a["error"] for a in answers if "error" in a)
    return [a.get("ids") for a in answers]


def compare_ids(program, exported, texts):
    """No text may get other ids than in Python; returns those that were refused."""
    got = ids_of(program, exported, texts)
    wanted = si.tokenize(texts, 77)
    for text, mine, row in zip(texts, got, wanted, strict=True):
        if mine is not None:
            cut = mine if len(mine) <= 77 else [*mine[:76], 49407]
            assert cut == row[: len(cut)].tolist() and not row[len(cut) :].any(), ascii(text)
    return [t for t, ids in zip(texts, got, strict=True) if ids is None]


def is_repaired(text):
    return ftfy.fix_text(text) != ftfy.fix_text(text, fix_encoding=False)


def test_ids_of_the_golden_strings(plain, exported, golden):
    tokens = np.load(golden / "tokens.npz")
    texts = json.loads(str(tokens["texts"]))
    refused = compare_ids(plain, exported, texts)
    assert len(refused) <= 2 and all(is_repaired(t) for t in refused)
    for text, mine, row in zip(
        texts, ids_of(plain, exported, texts), tokens["ids_77"], strict=True
    ):
        if mine is not None and len(mine) <= 77:
            assert mine == row[: len(mine)].tolist(), ascii(text)


PLAIN = [
    "a dog runs",
    "  Two   people\tdon't\ntalk;\r\nthey DANCE!!  ",
    "we'll we're we've i'm i'd it's can't 'quoted' rock'n'roll",
    "caf\u00e9 na\u00efve stra\u00dfe \u00c5ngstr\u00f6m \u0141\u00f3d\u017a \u0130stanbul",
    "e\u0301te\u0301 vs \u00e9t\u00e9, n\u0303 and \u0345 alone",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dashes \u2014 and\u2026 dots",
    "\ufb01ne \ufb02uff o\ufb03ce \u0133s \u01c6ep \ufb05op",
    "\uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff54\uff48 \uff76\uff9e\uff77 \uffe5",
    "\u65e5\u672c\u8a9e\u306e\u5b57\u5e55 \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\u039f\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03a3 \u03a3\u039f\u03a6\u039f\u03a3 \u03a3",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f \U0001f1e9\U0001f1ea",
    "3 \u00d7 4 \u00bd \u00b2 \u2167 \u0663 2024-01-01 1,000.5",
    "&amp; &lt;b&gt; &quot;x&quot; &#39; &#x27; &eacute; &EACUTE; &amp;amp; &amp;lt; &hellip",
    "<b>&eacute;</b> &notit; &not &AMP &unknown; & &; &#; &#xzz; &#0; &#128; &#55296; &#9999999;",
    "\x1b[31mred\x1b[0m \x00\x08\x0b\x0c\x1c\x7f\ufeff\ufffc\u206a zero\u200bwidth \u00ad",
    "line\u2028break\u2029and\u0085next \u00a0nbsp\u202fnarrow",
    "<|startoftext|> a <|endoftext|> !!<|endoftext|> <|\u017ftartoftext|> <|ENDOFTEXT|>",
    "!!! ... ??? @user #tag http://x.y/z?a=b&c=d :-) \\o/ ``x''",
    "supercalifragilisticexpialidocious " + "x" * 300,
    "",
    " ",
    "\ue000 private \ud7ff\U0010ffff \u0378 unassigned \U0001fae9",
]


def test_ids_of_ordinary_strings(plain, exported):
    assert compare_ids(plain, exported, PLAIN) == []


def test_ids_of_every_entity(plain, exported):
    names = sorted(html.entities.html5)
    texts = [f"x &{n} y" for n in names] + [f"a&{n.upper()}b" for n in names]
    texts += [f"&#{n};z &#x{n:X}" for n in range(300)]
    assert all(is_repaired(t) for t in compare_ids(plain, exported, texts))


def test_ids_of_every_character_of_the_first_plane(plain, exported):
    points = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    assert compare_ids(plain, exported, [f"a{c}b {c}" for c in points]) == []


def mixed(pool, count, longest, seed=1):
    rng = random.Random(seed)
    return ["".join(rng.choices(pool, k=rng.randint(1, longest))) for _ in range(count)]


def test_ids_of_random_mixtures(plain, exported):
    pool = [c for text in PLAIN for c in text[:60]]
    pool += ["&eacute;", "&EACUTE;", "n't", "'LL", "&#39;"]
    texts = mixed(pool, 3000, 14)
    assert len(compare_ids(plain, exported, texts)) < len(texts) // 10


def test_mojibake_is_refused_and_never_read_otherwise(plain, exported):
    pages = "latin-1 cp1252 cp1251 cp1250 cp1253 cp1254 cp1257 iso-8859-2 mac_roman cp437".split()
    real = "caf\u00e9 \u201cquote\u201d \u2013 \u00fcber \u043c\u0438\u0440 \u65e5\u672c \U0001f600"
    texts = [w.encode().decode(p, "replace") for p in pages for w in real.split()]
    assert "caf\u00c3\u00a9" in compare_ids(plain, exported, texts)
    letters = "".join(bytes(range(128, 256)).decode(p, "ignore") for p in pages) + "aZ ?\ufffd"
    compare_ids(plain, exported, mixed(sorted(set(letters)), 10_000, 5))
    compare_ids(plain, exported, mixed([*map(chr, range(128, 256)), *"ab "], 10_000, 5))


# A lead of one page and what continues it in another, after a pair that asks for the whole check.
UNITS = ("\u2264\x87", "\u0153\x8c", "\u00c5\u00e5", "\u0141\u00e3")


def test_a_text_takes_time_in_proportion_to_its_length(plain, exported):
    texts = ["\u0152 " + unit * count for unit in UNITS for count in (700, 2800)]
    ids = exported / "tokenizer.json"
    took = plain.json("seconds", ids, probe=True, stdin=json.dumps(texts))
    growth = [large / small for small, large in zip(took[::2], took[1::2], strict=True)]
    assert max(growth) < 9, growth  # between 4 and 16


# Sockets and files left: none (tests/cli/test_network.py: the commands).

VIDEO = MOTION / "clips" / "red_cross_moves_left.mp4"


@pytest.mark.parametrize("arguments", [[VIDEO], ["--self-test"]], ids=["video", "self-test"])
def test_the_program_is_silent(engine, arguments, plain, small, tmp_path):
    done = classify(plain, small, tmp_path, *arguments, "--engine", engine)
    assert done.code == 0, done.err
    done.check_silent()


def test_the_choice_of_a_user_is_kept_and_onnxruntime_is_then_seen(plain, small, tmp_path):
    if tuple(map(int, ort_library().name.split(".so.")[1].split(".")[:2])) < (1, 32):
        pytest.skip("onnxruntime before 1.32 has no telemetry on Linux")
    done = classify(plain, small, tmp_path, VIDEO, ORT_DISABLE_TELEMETRY="0")
    assert done.code == 0, done.err
    assert any("deviceid" in file for file in done.files), done.files


def classify(program, folder, place, *arguments, **environment):
    environment["STAN_INFER_ORT_LIBRARY"] = str(ort_library())
    return traced(
        [program.build / "stan_infer" / "stan_classify", folder, *arguments], place, **environment
    )
