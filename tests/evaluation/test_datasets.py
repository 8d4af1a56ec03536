"""The public annotation formats, on small files written as the data sets' authors publish them."""

import json
import pickle

import pytest

from stan_infer.errors import InputError
from stan_infer.evaluation.datasets import DATASETS, read_task

MSRVTT_CSV = """key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a little girl does gymnastics, slowly"
"""
MSRVTT_JSON = {
    "info": {"contributor": "x"},
    "videos": [{"video_id": "video9770", "split": "test", "category": 3}],
    "sentences": [
        {"caption": "a man talks", "video_id": "video9770", "sen_id": 1},
        {"caption": "he sings", "video_id": "video9771", "sen_id": 2},
        {"caption": "a man speaks", "video_id": "video9770", "sen_id": 3},
    ],
}
DIDEMO = [
    {"annotation_id": 1, "video": "12@N00_1.mov", "description": "a dog runs.", "times": [[0, 0]]},
    {"annotation_id": 2, "video": "13@N00_2.avi", "description": "a cat sits", "times": [[1, 1]]},
    {"annotation_id": 3, "video": "12@N00_1.mov", "description": " it stops ", "times": [[2, 2]]},
]
LSMDC = (
    "1004_Juno_00.00.32.161-00.00.35.300\t00:00:32,161\t00:00:35,300\t00:00:32,161\t00:00:35,300\t"
    'SOMEONE says "no", and turns.\n'
    "1004_Juno_00.00.36.000-00.00.38.000\t1\t2\t3\t4\tShe drinks.\n"
)
MSVD = """# Each line holds a video and a sentence

mv89psg6zh4_33_46 a bird is bathing in a sink
mv89psg6zh4_33_46 a parakeet is taking a shower
-4wsuPCjDBc_5_15 a squirrel eats a peanut
"""
KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,validate,0
"eating, fast",--3ouPhoy2A,20,30,validate,0
testifying,--4-0ihtnBU,58,68,validate,0
"""
SSV2 = [
    {"id": i, "label": label, "template": template, "placeholders": things}
    for i, label, template, things in (
        ("74225", "spinning cube that quickly stops",
         "Spinning [something] that quickly stops spinning", ["cube"]),
        ("116154", "showing cup on top of table",
         "Showing [something] on top of [something]", ["cup", "table"]),
    )
]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(content, name="annotations"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_msrvtt_csv(write):
    task = read_task("msrvtt", write(MSRVTT_CSV))
    assert task.videos == ("video9770", "video9771")
    assert task.texts[1] == "a little girl does gymnastics, slowly"
    assert task.owners == (0, 1)


def test_msrvtt_json(write):
    task = read_task("msrvtt", write(MSRVTT_JSON))
    assert task.videos == ("video9770", "video9771")
    assert task.owners == (0, 1, 0)


def test_msrvtt_json_of_lists(write):
    task = read_task("msrvtt", write({"video9770.mp4": ["a man", "a woman"], "v2.mp4": ["a"]}))
    assert task.videos == ("video9770.mp4", "v2.mp4")
    assert task.owners == (0, 0, 1)


def test_a_subset_keeps_its_videos_and_their_texts(write):
    task = read_task("msrvtt", write(MSRVTT_JSON), subset=["video9771.mp4"])
    assert (task.videos, task.texts, task.owners) == (("video9771",), ("he sings",), (0,))
    with pytest.raises(InputError, match="none of the 1 videos of the subset"):
        read_task("msrvtt", write(MSRVTT_JSON), subset=["video1"])


def test_didemo_joins_captions_in_the_order_of_the_file(write):
    task = read_task("didemo", write(DIDEMO))
    assert task.videos == ("12@N00_1.mov", "13@N00_2.avi")
    assert task.texts == ("a dog runs. it stops", "a cat sits")


def test_lsmdc(write):
    task = read_task("lsmdc", write(LSMDC))
    assert task.videos[0] == "1004_Juno_00.00.32.161-00.00.35.300"
    assert task.texts == ('SOMEONE says "no", and turns.', "She drinks.")


def test_msvd_has_several_texts_a_video(write):
    task = read_task("msvd", write(MSVD))
    assert task.videos == ("mv89psg6zh4_33_46", "-4wsuPCjDBc_5_15")
    assert task.owners == (0, 0, 1)


def test_kinetics_csv(write):
    task = read_task("kinetics400", write(KINETICS))
    assert task.videos[0] == "---QUuC4vJs_000084_000094"
    assert task.classes == ("eating, fast", "testifying")
    assert task.labels == (1, 0, 1)
    names = ["testifying", "yoga", "Eating, fast"]
    task = read_task("kinetics400", write(KINETICS), classes=names)
    assert (task.labels, task.classes) == ((0, 2, 0), tuple(names))


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
@pytest.mark.parametrize("dataset", ["kinetics400", "ssv2", "recognition"])
def test_lists_of_paths_and_numbers(write, dataset, separator):
    path = write(f"val/a b.mp4{separator}1\nval/c.mp4{separator}0\n")
    task = read_task(dataset, path, classes=["zero", "one"])
    assert task.videos == ("val/a b.mp4", "val/c.mp4")
    assert task.labels == (1, 0)
    with pytest.raises(InputError, match="class numbers without names"):
        read_task(dataset, path)
    with pytest.raises(InputError, match="class number 1, but --labels has 1 lines"):
        read_task(dataset, path, classes=["zero"])


def test_ssv2_takes_the_template_without_its_brackets(write):
    task = read_task("ssv2", write(SSV2))
    assert task.videos == ("74225", "116154")
    assert task.classes[task.labels[0]] == "Spinning something that quickly stops spinning"


def test_plain_tables(write):
    task = read_task("retrieval", write("video,text\na.mp4,one\na.mp4,two\n"))
    assert (task.videos, task.owners, task.is_retrieval) == (("a.mp4",), (0, 0), True)
    task = read_task("recognition", write("label,video\nwalk,a.mp4\nrun,b.mp4\n"))
    assert (task.classes, task.labels, task.is_retrieval) == (("run", "walk"), (1, 0), False)


@pytest.mark.parametrize(
    ("dataset", "content", "message"),
    [
        ("msrvtt", "a,b\n1,2\n", "no column video_id, sentence"),
        ("msrvtt", "video_id,sentence\nv1,\n", "text 1 or its video's name is blank"),
        ("msrvtt", '{"sentences": [{"video_id": "v"}]}', "missing .*`caption`; need 'sen"),
        ("msrvtt", '{"sentences": 3}', "sentences: Expected `array`, got `int`"),
        ("msrvtt", '{"v1": 3}', "need 'sentences' with 'video_id' and 'caption', or"),
        ("msrvtt", '{"v1": [3]}', "Expected `str`, got `int`"),
        ("msrvtt", "{", "is not JSON"),
        ("msrvtt", "[" * 200_000, "nested too deeply"),
        ("msrvtt", "", "no column video_id"),
        ("didemo", "3", "need a list of entries"),
        ("didemo", "[]", "holds no text"),
        ("didemo", "[4]", "entries with 'video'"),
        ("msrvtt", '{"v": ["a"], "v": ["b"]}', "the key 'v' is there twice"),
        ("msrvtt", '{"v": ["\\ud800"]}', "surrogates not allowed"),
        ("lsmdc", "a\tb\n", "row 1: 2 cells; need at least 6"),
        ("msvd", "video a text\n", "line 1: need VIDEO_START_END"),
        ("kinetics400", KINETICS.replace("84", "x"), "times that are not numbers"),
        ("ssv2", "alone\n", "line 1: need a video and a class"),
        ("recognition", "video,label\na.mp4,x\na.mp4,y\n", "gives video a.mp4 two classes"),
        ("recognition", "video,label\na.mp4,\n", "its class is blank"),
        ("retrieval", "video,text\na.mp4\n", "row 2: 1 cells"),
        ("msrvt", "", "did you mean 'msrvtt'"),
    ],
)
def test_wrong_files_are_told(write, dataset, content, message):
    with pytest.raises(InputError, match=message):
        read_task(dataset, write(content))


def test_a_pickle_is_never_loaded(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"v": [["a", "b"]]}))
    with pytest.raises(InputError, match="pickle, which can run code"):
        read_task("msvd", path)


def test_labels_must_fit(write):
    with pytest.raises(InputError, match="--labels belongs to recognition"):
        read_task("msvd", write(MSVD), classes=["a"])
    with pytest.raises(InputError, match="has a class name twice"):
        read_task("kinetics400", write(KINETICS), classes=["a", "a"])
    with pytest.raises(InputError, match="classes that --labels lacks: eating, fast"):
        read_task("kinetics400", write(KINETICS), classes=["testifying", "yoga"])


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_task("msvd", tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"v_1_2 caf\xe9\n")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_task("msvd", tmp_path / "latin.txt")


def test_presets_are_the_authors_settings():
    d = DATASETS
    assert (d["msrvtt"].frames, d["msrvtt"].context_length, d["msrvtt"].mug_frames) == (12, 32, 32)
    assert (d["didemo"].frames, d["didemo"].context_length) == (64, 77)
    assert round(224 * d["didemo"].resize) == 256
    assert (d["lsmdc"].frames, d["lsmdc"].context_length) == (12, 32)
