"""Every engine takes the same clips and texts, and refuses the same ones in the same words."""

import copy
import multiprocessing
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.engines.ort_session import OrtSession
from stan_infer.engines.sources import absolute
from stan_infer.engines.triton_session import TritonSession
from stan_infer.errors import CheckError, InputError
from tests.conftest import ROOT, clips, relative_error
from tests.engines.test_sessions import FOLDER_ENGINES, FP32, ids
from tests.engines.test_triton_session import gpu, open_fake  # noqa: F401
from tests.exported import exported, rewrite

KINDS = ["eager", "fused", *FOLDER_ENGINES]
BOTH = ["eager", *FOLDER_ENGINES]  # those that take floats, or whose text towers differ


def opened(kind, model, **options):
    if kind in FOLDER_ENGINES:
        return si.open_session(exported(model, **options), engine=kind)
    return si.open_session(model, graph={"eager": "reference", "fused": "fused"}[kind])


@pytest.fixture(scope="module", params=KINDS)
def session(request, tiny_model):
    return opened(request.param, tiny_model)


@pytest.fixture(scope="module", params=BOTH)
def of_floats(request, tiny_model):
    return opened(request.param, tiny_model, input="float")


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def spread(values):
    """The same values, not contiguous."""
    wide = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


FORMS = {
    "read-only": read_only,
    "not contiguous": spread,
    "reversed": lambda v: v[::-1, ::-1].copy()[::-1, ::-1],
    "a list": list,
    "a tuple of tensors": lambda v: tuple(torch.from_numpy(x) for x in v),
    "a tensor": torch.from_numpy,
    "a tensor, not contiguous": lambda v: torch.from_numpy(v.swapaxes(0, 1).copy()).swapaxes(0, 1),
}
WIDTHS = {
    "float64": (lambda v: v.astype(np.float64), FP32),
    "big-endian": (lambda v: v.astype(">f4"), FP32),
    "float16": (lambda v: v.astype(np.float16), 1e-2),
    "bfloat16": (lambda v: torch.from_numpy(v).bfloat16(), 1e-1),
    "double tensor": (lambda v: torch.from_numpy(v).double(), FP32),
    "with a gradient": (lambda v: torch.from_numpy(v).requires_grad_(), FP32),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_clips_gives_the_same(session, form):
    video = clips(2, 3, 16)
    wanted = np.asarray(session.embed_video(video))
    assert np.array_equal(session.embed_video(FORMS[form](video)), wanted)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", WIDTHS)
def test_floats_of_any_width_are_taken(of_floats, tiny_model, width):
    change, error = WIDTHS[width]
    video = tiny_model.normalize(torch.from_numpy(clips(2, 3, 16))).contiguous().numpy()
    wanted = np.asarray(of_floats.embed_video(video))
    for form in (lambda v: v, FORMS["read-only"]) if width == "float64" else (lambda v: v,):
        got = of_floats.embed_video(form(change(video)))
        assert str(got.dtype).endswith("float32")
        assert relative_error(got, wanted) < error


def test_floats_that_are_not_finite_are_refused(of_floats):
    floats = np.zeros((3, 2, 3, 16, 16))
    for value in (np.nan, np.inf, -np.inf, 1e300):  # the last is infinite in float32
        floats[1, 1, 2, 3, 4] = value
        for given in (floats, torch.from_numpy(floats), list(floats)):
            with pytest.raises(InputError, match="clip 1 of video holds NaN or infinite"):
                of_floats.embed_video(given)


@pytest.mark.parametrize("kind", ["fused", *FOLDER_ENGINES])
def test_floats_for_an_engine_of_pixels_are_told_by_their_dtype(tiny_model, kind):
    """Even where one is NaN, because finite floats would be refused, too."""
    session, floats = opened(kind, tiny_model), np.full((1, 2, 3, 16, 16), np.nan, np.float32)
    for given in (floats, torch.from_numpy(floats)):
        with pytest.raises(InputError, match="video is float32; .* takes uint8"):
            session.embed_video(given)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "video holds no clips: B is 0"),
        (np.zeros((0, 2, 16, 16, 3), np.uint8), "video holds no clips: B is 0"),
        (torch.zeros((0, 2, 16, 16, 3), dtype=torch.uint8), "video holds no clips: B is 0"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"shape \[2, 16, 16, 3\]; uint8 clips are"),
        (torch.zeros((2, 16, 16, 3), dtype=torch.uint8), r"shape \[2, 16, 16, 3\]; uint8 clips"),
        (np.zeros((1, 2, 16, 16, 3), np.int64), "video is int64; give uint8"),
        (torch.zeros((1, 2, 16, 16, 3), dtype=torch.int64), "video is int64; give uint8"),
        (np.zeros((1, 2, 16, 16, 3), bool), "video is bool; give uint8"),
        (np.zeros((1, 2, 16, 16, 3), complex), "video is complex128; give uint8"),
        (np.zeros((1, 2, 16, 16, 3)), r"float clips are \[B,T,3,H,W\]"),
        (None, "video is of type NoneType; give uint8"),
        ("clip.mp4", "video is of type str; give uint8"),
        ((clip for clip in ()), "video is of type generator; give uint8 .* or a list of clips"),
        ([{"clip": 1}], "video is of type dict; give uint8"),
        ([np.zeros((2, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8)], "different"),
    ],
)
def test_clips_that_no_engine_takes(session, video, message):
    with pytest.raises(InputError, match=message):
        session.embed_video(video)


@pytest.mark.parametrize("engine", FOLDER_ENGINES)
def test_a_folder_takes_what_it_was_exported_for(tiny_model, engine):
    floats = np.zeros((1, 2, 3, 16, 16))
    with pytest.raises(InputError, match="video is float32; .* takes uint8.*--input float"):
        opened(engine, tiny_model).embed_video(floats)


TEXTS = ["a shape moves left", "a shape moves right"]


@pytest.fixture(scope="module", params=BOTH)
def reader(request):
    return opened(request.param, si.load_model(ROOT / "examples" / "motion" / "motion.safetensors"))


@pytest.mark.parametrize(
    "texts",
    [
        (t for t in TEXTS),
        iter(TEXTS),
        tuple(TEXTS),
        dict.fromkeys(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        [np.str_(t) for t in TEXTS],
    ],
    ids=["generator", "iterator", "tuple", "keys", "U", "O", "np.str_"],
)
def test_texts_of_any_iterable(reader, texts):
    if not isinstance(texts, (tuple, dict, list, np.ndarray)):
        texts = (t for t in TEXTS)  # one for each engine
    assert np.array_equal(reader.embed_text(texts), reader.embed_text(TEXTS))


def test_one_text(reader):
    wanted = np.asarray(reader.embed_text(TEXTS[:1]))
    for text in (TEXTS[0], np.str_(TEXTS[0]), np.array(TEXTS[0])):
        assert np.array_equal(reader.embed_text(text), wanted)
    c = reader.config
    video = clips(2, c.frames, c.image_size)
    scores = np.asarray(reader.score((t for t in TEXTS), torch.from_numpy(video)))
    assert np.array_equal(scores, reader.score(TEXTS, video)) and scores.shape == (2, 2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts: Q is 0"),
        (iter(()), "no texts: Q is 0"),
        (np.array([], object), "no texts: Q is 0"),
        (np.array([], "U3"), "no texts: Q is 0"),
        (np.zeros((0, 32), int), r"token ids have shape \[0, 32\]"),
        (["a", " "], "text 1 is blank"),
        ("", "text 0 is blank"),
        (["a", None], "text 1 is of type NoneType, not a string"),
        (np.array(["a", np.nan], object), "text 1 is of type float, not a string"),
        ([b"a"], "text 0 is of type bytes"),
        (b"a", "text 0 is of type bytes"),
        (np.array([b"a"]), "text 0 is of type bytes"),
        (np.array([["a"]]), r"token ids have shape \[1, 1\], <U1; need int \[Q, L\], or a list"),
        (7, "texts is of type int"),
        (None, "texts is of type NoneType"),
        ([[1, 2], [3]], "token ids have different sizes"),
        ([[1.5, 2]], "token ids have shape .*float64"),
    ],
)
def test_texts_that_no_engine_takes(reader, texts, message):
    if not isinstance(texts, (list, np.ndarray, bytes, int, str)) and texts is not None:
        texts = iter(())
    with pytest.raises(InputError, match=message):
        reader.embed_text(texts)


def test_a_blank_text_is_refused_wherever_texts_go(reader, tmp_path):
    """Words pass and a blank one does not, in every public function and method that takes texts."""
    from stan_infer.library.embeddings import embed_to_file
    from stan_infer.library.texts import embed_texts
    from stan_infer.text.templates import read_templates

    video = clips(1, reader.config.frames, reader.config.image_size)
    stored, sentence = reader.embed_video(video), read_templates("a video of {}")
    takers = (
        reader.embed_text,
        lambda texts: reader.score(texts, video),
        lambda texts: reader.score_embeddings(texts, stored),
        lambda texts: embed_texts(reader, texts, sentence),
        lambda texts: embed_to_file(reader, [], texts, tmp_path / "v.npz"),
    )
    for take in takers:
        take(TEXTS)
        with pytest.raises(InputError, match=r"text 2 is blank \(' '\); give words"):
            take([*TEXTS, " "])
    with pytest.raises(InputError, match="text 1 is blank"):
        si.verify("a.pth", "b.pth", texts=["a", ""])


@pytest.mark.parametrize("make", [torch.from_numpy, lambda v: v.tolist(), lambda v: v.astype("u1")])
def test_ids_of_any_form(session, make):
    assert np.array_equal(session.embed_text(make(ids())), session.embed_text(ids()))


# Names of what every session offers; a new one must be guarded, too.
def calls(session):
    return {
        "embed_video": lambda: session.embed_video(clips(1, 2, 16)),
        "embed_text": lambda: session.embed_text(ids()),
        "score": lambda: session.score(ids(), clips(1, 2, 16)),
        "read_clip": lambda: session.read_clip("none.mp4"),
        "describe": session.describe,
        "config": lambda: session.config,
        "vocabulary": lambda: session.vocabulary,
        "with": session.__enter__,
        "pickle": lambda: pickle.dumps(session),
    }


def check_closed(session):
    session.close()
    session.close()
    own = {n for n in dir(session.__class__) if not n.startswith("_")} - {"close", "reopened_by"}
    found = calls(session)
    for call in found.values():
        with pytest.raises(InputError, match="this session is closed: open the model again"):
            call()
    for name in own - found.keys() - {"engine", "reduced", "fine"}:
        with pytest.raises(InputError, match="is closed"):
            getattr(session, name)()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_session_says_so(tiny_model, kind):
    with opened(kind, tiny_model) as session:
        assert session.embed_video(clips(1, 2, 16)).shape == (1, 24)
    check_closed(session)


def test_a_closed_session_of_our_kernels_says_so(gpu, tiny_model):  # noqa: F811
    check_closed(open_fake(tiny_model, gpu))


def test_our_kernels_take_the_same_forms(gpu, tiny_model):  # noqa: F811
    session = open_fake(tiny_model, gpu)
    video = clips(2, 3, 16)
    wanted = session.embed_video(video)
    for form in ("read-only", "a list", "reversed"):
        assert np.array_equal(session.embed_video(FORMS[form](video)), wanted)
    with pytest.raises(InputError, match="B is 0"):
        session.embed_video([])
    with pytest.raises(InputError, match="video is float32; engine triton takes uint8"):
        session.embed_video(np.zeros((1, 2, 3, 16, 16)))


def test_a_block_that_fails_closes_too(tiny_model):
    with pytest.raises(KeyError), si.open_session(tiny_model) as session:
        raise KeyError
    with pytest.raises(InputError, match="is closed"):
        session.describe()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_opens_the_same(tiny_model, kind, tmp_path, monkeypatch):
    session = opened(kind, tiny_model)
    data = pickle.dumps(session)
    monkeypatch.chdir(tmp_path)  # a relative path would lead nowhere
    for again in (pickle.loads(data), copy.copy(session)):
        assert again.describe() == session.describe()
        video = clips(1, 3, 16)
        assert np.array_equal(again.embed_video(video), session.embed_video(video))
    again.close()
    session.describe()  # the first one is still open


def test_a_pickle_holds_options_and_no_weights(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    session = si.open_session(folder.name, "ort", threads=1)
    data = pickle.dumps(session)
    assert len(data) < 2000
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).describe()["threads"] == 1
    checkpoint = ROOT / "examples" / "motion" / "motion.safetensors"
    session = si.open_session(checkpoint, settings={"frames": 5}, precision="bf16")
    assert len(data := pickle.dumps(session)) < 2000
    again = pickle.loads(data)
    assert again.config.frames == 5 and again.describe() == session.describe()


def test_a_folder_that_was_exported_anew_is_not_taken_for_the_old_one(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "x")
    data = pickle.dumps(si.open_session(copied))
    rewrite(copied, lambda manifest: manifest.update(licence="other"))
    with pytest.raises(CheckError, match="is not what it was when this session was pickled"):
        pickle.loads(data)
    shutil.rmtree(copied)
    with pytest.raises(CheckError, match=re.escape(str(copied))):
        pickle.loads(data)


def test_a_session_made_by_its_class_does_not_pickle(folder):
    from stan_infer.artefacts.folder import read_artefact

    with pytest.raises(pickle.PicklingError, match="open_session makes sessions that can"):
        pickle.dumps(OrtSession(read_artefact(folder)))
    assert issubclass(TritonSession, OrtSession.__mro__[-3])


def embed(session, video):
    return np.asarray(session.embed_video(video))


def test_sessions_go_to_spawned_processes(folder):
    session, video = si.open_session(folder, "ort", threads=1), clips(2, 3, 16)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.starmap(embed, [(session, video), (session, video[:1])])
    assert np.array_equal(got[0], embed(session, video)) and got[1].shape == (1, 24)


def test_paths_of_a_pickle_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.pt").touch()
    assert absolute("clip.pt") == tmp_path / "clip.pt"
    assert absolute("ViT-B-32:clip.pt") == f"ViT-B-32:{tmp_path / 'clip.pt'}"
    assert absolute("ViT-B-32:openai") == "ViT-B-32:openai"
