"""Annotation files in the forms in which they lie about: heads of public ones, and small ones."""

import csv
import io
import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.errors import InputError
from stan_infer.evaluation.datasets import DATASETS, read_names, read_task
from stan_infer.evaluation.task import Task
from stan_infer.text.labels import Labels, read_labels

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


def named(*names):
    return Labels(tuple(range(len(names))), names)


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


def test_a_subset_keeps_its_videos_and_their_texts(write, caplog):
    task = read_task("msrvtt", write(MSRVTT_JSON), subset=["video9771.mp4", "video1"])
    assert (task.videos, task.texts, task.owners) == (("video9771",), ("he sings",), (0,))
    assert "1 of the 2 names of the subset are not in" in caplog.text and "video1" in caplog.text
    with pytest.raises(InputError, match="none of the 1 videos of the subset"):
        read_task("msrvtt", write(MSRVTT_JSON), subset=["video1"])


def test_a_name_of_the_subset_that_occurs_means_itself_only(write):
    path = write({"a.mp4": "one", "a.avi": "two", "b.mov": "three", "b.mp4": "four"})
    task = read_task("retrieval", path, subset=["a.avi", "b"])
    assert task.videos == ("a.avi", "b.mov", "b.mp4")


@pytest.mark.parametrize(
    "content",
    ["v1\nv2\n", "video_id,sentence\nv1,x\nv2,y\n", '["v1", "v2"]', "key;video\n1;v1\n2;v2\n"],
)
def test_lists_of_names(write, content):
    assert read_names(write(content)) == ["v1", "v2"]


@pytest.mark.parametrize(
    ("dataset", "file", "videos", "texts"),
    [
        ("msrvtt", "msrvtt_1ka_head.csv", 60, 60),
        ("msrvtt", "msrvtt_1ka_semicolon_head.csv", 30, 30),
        ("didemo", "didemo_val_sample.json", 42, 42),
        ("msvd", "msvd_captions_head.json", 40, 480),
        ("lsmdc", "lsmdc_test_form.json", 30, 30),
        ("retrieval", "activitynet_val_head.json", 8, 8),
    ],
)
def test_heads_of_public_files_with_texts(annotations, dataset, file, videos, texts):
    task = read_task(dataset, annotations / file)
    assert (len(task.videos), len(task.texts)) == (videos, texts)
    assert DATASETS[dataset].split(task) == f"as in the file, {videos} videos"


@pytest.mark.parametrize(
    ("dataset", "file", "labels", "first"),
    [
        ("kinetics400", "k400_val_head.txt", "k400_labels.csv", "abseiling"),
        ("ssv2", "ssv2_val_head.txt", "ssv2_labels.csv", "Spinning something that quickly stops"),
        ("ssv2", "ssv2_val_head.txt", "ssv2_labels_form.json", "Spinning something that quickly"),
        ("recognition", "hmdb51_val1_head.txt", "hmdb51_labels.csv", "brush hair"),
        ("recognition", "hmdb51_val1_head.txt", "hmdb51_label_map.txt", "brush_hair"),
    ],
)
def test_heads_of_public_files_with_classes(annotations, dataset, file, labels, first):
    task = read_task(dataset, annotations / file, labels=read_labels(annotations / labels))
    assert len(task.videos) == 60 and task.classes[task.labels[0]].startswith(first)


def test_lists_that_are_of_other_things_are_refused_by_name(annotations):
    with pytest.raises(InputError, match="line 1: 'test.mp4 0 3': a list with several classes"):
        read_task("recognition", annotations / "multilabel.txt")
    with pytest.raises(InputError, match="a list of folders with frames"):
        read_task("recognition", annotations / "rawframes.txt")


def test_didemo_knows_a_video_by_its_stem(annotations, caplog):
    file = annotations / "didemo_val_sample.json"
    task = read_task("didemo", file, subset=read_names(annotations / "didemo_val_list_sample.txt"))
    assert len(task.videos) == len(task.texts) == 42
    assert "54 names are 42 videos" in caplog.text
    moments = json.loads(file.read_text())
    words = sum(len(m["description"].split()) for m in moments)
    assert sum(len(t.split()) for t in task.texts) == words


def test_a_split_is_named_by_its_counts_only():
    def task(videos, texts):
        owners = tuple(i % videos for i in range(texts))
        return Task(tuple(map(str, range(videos))), ("a text",) * texts, owners)

    assert DATASETS["didemo"].split(task(1004, 1004)) == "test"
    assert DATASETS["didemo"].split(task(1037, 1037)) == "as in the file, 1037 videos"
    assert DATASETS["msvd"].split(task(670, 27763)) == "test"
    assert DATASETS["msrvtt"].split(task(1000, 1000)) == "1k-A test"


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
    task = read_task("kinetics400", write(KINETICS), labels=named(*names))
    assert (task.labels, task.classes) == ((0, 2, 0), tuple(names))


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
@pytest.mark.parametrize("dataset", ["kinetics400", "ssv2", "recognition"])
def test_lists_of_paths_and_numbers(write, dataset, separator):
    path = write(f"val/a b.mp4{separator}1\nval/c.mp4{separator}0\n")
    task = read_task(dataset, path, labels=named("zero", "one"))
    assert task.videos == ("val/a b.mp4", "val/c.mp4")
    assert task.labels == (1, 0)
    with pytest.raises(InputError, match="class numbers without names"):
        read_task(dataset, path)
    with pytest.raises(InputError, match="class number 1, but --labels has 1 names, for numbers 0"):
        read_task(dataset, path, labels=named("zero"))
    task = read_task(dataset, path, labels=Labels((0, 1, 5), ("zero", "one", "five")))
    assert [task.classes[i] for i in task.labels] == ["one", "zero"]


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
        ("msrvtt", "a,b\n1,2\n", "line 1: 'a,b' is of no known form; read are"),
        ("msrvtt", "video_id,when\n1,2\n", "needs a column for the text"),
        ("msrvtt", '{"sentences": [{"video_id": "v"}]}', "sentence 1: needs a video .* and a text"),
        ("msrvtt", '{"sentences": 3}', "video sentences: '3' is not a text"),
        ("msrvtt", '{"v1": [{}]}', "video v1: '{}' is not a text"),
        ("msrvtt", '{"v1": {"x": 1}}', "video v1: no text"),
        ("msrvtt", "{", "is not JSON"),
        ("msrvtt", "[" * 200_000, "nested too deeply"),
        ("msrvtt", "", "holds no text"),
        ("didemo", "[]", "holds no text"),
        ("didemo", "[4]", "entry 1: needs a video"),
        ("msrvtt", '{"v": ["a"], "v": ["b"]}', "the key 'v' is there twice"),
        ("msrvtt", '{"v": ["\\ud800"]}', "surrogates not allowed"),
        ("lsmdc", "a\tb\n", "line 1: .* is of no known form"),
        ("msvd", "video a text\n", "line 1: 'video a text' is of no known form"),
        ("kinetics400", KINETICS.replace("84", "x"), "times that are not numbers"),
        ("ssv2", "alone\n", "line 1: 'alone' needs a video and a class"),
        ("recognition", "video,label\na.mp4,\n", "line 2: the video or its class is blank"),
        ("retrieval", "video,text\na.mp4\n", "line 2: 1 cells, where the header has 2"),
        ("msrvt", "", "did you mean 'msrvtt'"),
    ],
)
def test_wrong_files_are_told(write, dataset, content, message):
    with pytest.raises(InputError, match=message):
        read_task(dataset, write(content))


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_pickle_of_plain_values_is_read_and_no_other(tmp_path, capsys):
    path = tmp_path / "raw-captions.pkl"
    captions = {"v": [["a", "man"], ["b"]], "w": [["c"]]}
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(captions, protocol))
        task = read_task("msvd", path)
        assert (task.videos, task.texts) == (("v", "w"), ("a man", "b", "c"))
    path.write_bytes(pickle.dumps({"v": Runs()}))
    with pytest.raises(InputError, match="a pickle with more than plain values"):
        read_task("msvd", path)
    path.write_bytes(pickle.dumps({"v": 3}))
    with pytest.raises(InputError, match="is a pickle, which can run code"):
        read_task("ssv2", path)
    assert capsys.readouterr().out == ""


def test_labels_must_fit(write):
    with pytest.raises(InputError, match="--labels belongs to recognition"):
        read_task("msvd", write(MSVD), labels=named("a"))
    with pytest.raises(InputError, match="classes that --labels lacks: eating, fast"):
        read_task("kinetics400", write(KINETICS), labels=named("testifying", "yoga"))


def test_a_task_with_fewer_classes_than_its_data_set_says_so(write, caplog):
    read_task("kinetics400", write(KINETICS))
    assert "kinetics400 has 400 classes, and here are 2" in caplog.text


def test_classes_without_videos_are_counted(write, caplog):
    labels = read_labels(write("a\nb\nc\n", "labels.txt"))
    read_task("recognition", write("v1.mp4 0\nv2.mp4 2\n"), labels=labels)
    assert "1 of the 3 classes of --labels have no video" in caplog.text


def test_numbers_that_may_count_from_1_are_told(write, caplog):
    labels = read_labels(write("a\nb\nc\n", "labels.txt"))
    read_task("recognition", write("v1.mp4 1\nv2.mp4 2\n"), labels=labels)
    assert "no video has class 0, and the lowest number is 1" in caplog.text
    caplog.clear()
    numbered = read_labels(write("id,name\n1,a\n2,b\n", "numbered.csv"))
    read_task("recognition", write("v1.mp4 1\nv2.mp4 2\n"), labels=numbered)
    assert "class 0" not in caplog.text
    gap = read_labels(write("a\n\nc\n", "gap.txt"))
    with pytest.raises(InputError, match="numbers 0 to 2, and a blank line or a gap there"):
        read_task("recognition", write("v1.mp4 1\nv2.mp4 2\n"), labels=gap)


def test_the_split_files_of_hmdb_hold_no_classes(write):
    labels = read_labels(write("a\nb\nc\n", "labels.txt"))
    file = write("v_0.avi 1 \nv_1.avi 2 \nv_2.avi 0 \n", "chew_test_split1.txt")
    with pytest.raises(InputError, match="say test"):
        read_task("recognition", file, labels=labels)


@pytest.mark.parametrize(
    ("dataset", "content"),
    [
        ("msrvtt", {"videos": [{"video_id": "a", "split": "train"}, {"video_id": "b", "split":
         "test"}], "sentences": [{"video_id": "a", "caption": "x"}]}),
        ("retrieval", [{"video": "a", "caption": "x", "split": "train"}, {"video": "b",
         "caption": "y", "split": "test"}]),
        ("retrieval", "video,caption,split\na,x,train\nb,y,test\n"),
        ("recognition", "video,label,split\na,x,train\nb,y,test\n"),
        ("recognition", [{"video": "a", "label": "x", "split": "train"}, {"video": "b",
         "label": "y", "split": "test"}]),
    ],
)  # fmt: skip
def test_a_file_of_several_splits_says_so(write, caplog, dataset, content):
    read_task(dataset, write(content if isinstance(content, str) else json.dumps(content)))
    assert "train (1), test (1)" in caplog.text


def test_one_blank_caption_is_left_out_and_named(write, caplog):
    task = read_task("msrvtt", write("video_id,sentence\nv1,\nv2,a dog\n"))
    assert (task.videos, task.texts) == (("v2",), ("a dog",))
    assert "1 without a text or a video are left out: line 2" in caplog.text


def rows_of(task):
    """What a task says, whatever the order of its file."""
    if task.is_retrieval and task.texts:
        return sorted((task.videos[o], t) for t, o in zip(task.texts, task.owners, strict=True))
    return sorted((v, task.classes[i]) for v, i in zip(task.videos, task.labels, strict=True))


def delimited(rows, delimiter, quoting=csv.QUOTE_MINIMAL, end="\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return out.getvalue()


WORDS = st.text("abc ,;'\"xyz\u2028\x0b", min_size=1, max_size=20).map(str.strip).filter(bool)
VIDEO = st.from_regex(r"[a-z]{1,6}( [a-z]{1,3})?\.(mp4|avi)", fullmatch=True)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(VIDEO, WORDS), min_size=1, max_size=6), order=st.randoms())
def test_the_form_of_a_file_changes_nothing(tmp_path_factory, rows, order: random.Random):
    """Order of rows and columns, delimiter, quotes, line ends, byte order mark, JSON forms."""
    path = tmp_path_factory.getbasetemp() / "any-annotations"
    mixed = order.sample(rows, len(rows))
    forms = [
        delimited([("video_id", "caption"), *mixed], d, q, e)
        for d in ",;\t"
        for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        for e in ("\n", "\r\n")
    ]
    forms.append(delimited([("caption", "x", "video"), *((t, 1, v) for v, t in mixed)], ","))
    forms.append(json.dumps([{"video": v, "caption": t} for v, t in mixed]))
    forms.append("\n".join(json.dumps({"video": v, "text": t}) for v, t in mixed))
    lists: dict[str, list[str]] = {}
    for v, t in mixed:
        lists.setdefault(v, []).append(t)
    forms.append(json.dumps(lists))
    for text in forms:
        for encoding in ("utf-8", "utf-8-sig"):
            path.write_bytes(text.encode(encoding))
            assert rows_of(read_task("retrieval", path)) == sorted(rows), text


@settings(max_examples=80, deadline=None)
@given(
    rows=st.dictionaries(VIDEO, WORDS.filter(lambda w: w.isprintable()), min_size=2, max_size=6),
    order=st.randoms(),
)
def test_the_form_of_a_list_changes_nothing(tmp_path_factory, rows, order: random.Random):
    path = tmp_path_factory.getbasetemp() / "any-classes"
    mixed = order.sample(sorted(rows.items()), len(rows))
    for d in ",;\t":
        for header in ([], [("path", "label")]):
            for end in ("\n", "\r\n"):
                path.write_bytes(delimited([*header, *mixed], d, csv.QUOTE_ALL, end).encode())
                assert rows_of(read_task("recognition", path)) == sorted(rows.items())
    classes = sorted(set(rows.values()))
    labels = Labels(tuple(range(len(classes))), tuple(classes))
    numbers = [(v, classes.index(c)) for v, c in mixed]
    for d in " ,;\t":
        path.write_text("".join(f"{v}{d}{n}\n" for v, n in numbers))
        assert rows_of(read_task("recognition", path, labels=labels)) == sorted(rows.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'video_id,caption\nv1,a\nv2,"so he said\nv3,b\n',
            "line 3: a quote at the start of a cell",
        ),
        ("video_id,start,end,caption\nv,0,5,a\nv,5,9,b\n", "describe parts of videos"),
        (
            '{"video":"v","start":0,"text":"a"}\n{"video":"v","start":5,"text":"b"}\n',
            "parts of videos",
        ),
        ("index\tsplit\tstart\tend\tvideo-id\ttext-of\n0\ttest\t1\t2\tv\ta cat\n", "four times"),
        ("c\t1\t2\t3\t4\ta cat\tcut\n", "7 cells; lines of LSMDC have"),
    ],
)
def test_texts_that_could_mean_anything_are_refused(write, content, message):
    with pytest.raises(InputError, match=message):
        read_task("retrieval", write(content))


def test_what_is_read_by_name_and_not_by_place(write, tmp_path):
    task = read_task("retrieval", write("video_id,clip_id,text\nv,v_1,a\nv,v_2,b\n"))
    assert task.videos == ("v_1", "v_2")
    task = read_task("retrieval", write([{"video": "v", "sentences": ["a.", "b."]}]))
    assert task.texts == ("a. b.",)
    task = read_task("recognition", write([{"id": 7, "video": "a.mp4", "label": "run"}]))
    assert rows_of(task) == [("a.mp4", "run")]
    task = read_task("recognition", write('{"video": "a.mp4", "label": "run"}\n'))
    assert rows_of(task) == [("a.mp4", "run")]
    lines = '{"video": "a.mp4", "label": "run"}\n{"video": "b.mp4", "label": "walk"}\n'
    assert rows_of(read_task("recognition", write(lines))) == [("a.mp4", "run"), ("b.mp4", "walk")]
    task = read_task("recognition", write('"a.mp4" 0\n"b.mp4" 1\n'), labels=named("x", "y"))
    assert task.videos == ("a.mp4", "b.mp4")
    labels = named("run", "Run", "walk")
    path = write("video,label\na.mp4,run\nb.mp4,Run\nc.mp4,WALK\n")
    assert rows_of(read_task("recognition", path, labels=labels)) == [
        ("a.mp4", "run"), ("b.mp4", "Run"), ("c.mp4", "walk"),
    ]  # fmt: skip
    path = write("video,text\ncat/001.mp4,a\ndog/001.mp4,b\n")
    assert read_task("retrieval", path, subset=["dog/001.mp4"]).videos == ("dog/001.mp4",)
    with pytest.raises(InputError, match="none of the 1 videos"):
        read_task("retrieval", path, subset=["bird/001.mp4"])


@pytest.mark.parametrize(
    "value",
    [
        {"v": [["a"] * 3, 3]},
        {"v": [[["a"]]]},
        {"v": [["a" * 5000]]},
        {"v": [["a"] * 1000] * 6000},
        ["a"],
    ],
)
def test_pickles_of_other_plain_values_are_refused(tmp_path, value):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match="something else|without a dict"):
        read_task("msvd", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_file,action_type\n74225,push\n", "looks like a header"),
        ("path label\na.mp4 run\nb.mp4 walk\n", "looks like a header"),
        ("run,a.mp4\nwalk,b.mp4\n", "the video comes first"),
        ("a.mp4 0.0\nb.mp4 1.0\n", "not a whole number"),
        ("a.mp4 0000000001\n", "is not a number of a class"),
        ("video_id,start,end,label\nv,0,1,run\n", "describe parts of videos"),
        ('[{"video": "v", "start": 0, "label": "run"}]', "describe parts of videos"),
        ("foo,bar\na.mp4,dog\nb.mp4,cat\n", "looks like a header without a known column"),
        ("foo,bar\na,1\nb,2\n", "looks like a header without a known column"),
        ("a.mp4 brush hair\nb.mp4 run\n", "cannot be told apart: separate"),
        ("a.mp4,x,y\nb.mp4,z,w\n", "line 1: .* is not a video and a class separated by comma"),
        ("a.mp4 1\nb.mp4 x\n", "class 1 is a number, class 'x' is a name"),
        ("video_path,start\na.mp4,1\n", "has no column for the class"),
        ("video,label\na.mp4,x\na.mp4,y\n", "line 3: video a.mp4 has a second class"),
    ],
)
def test_lists_that_could_mean_anything_are_refused(write, content, message):
    with pytest.raises(InputError, match=message):
        read_task("recognition", write(content))


def test_tables_with_other_headers(write):
    task = read_task("recognition", write("filename,label\na.mp4,run\nb.mp4,walk\n"))
    assert rows_of(task) == [("a.mp4", "run"), ("b.mp4", "walk")]
    task = read_task("recognition", write("clip_name,clip_path,label\nx,k/x.mp4,run\n"))
    assert task.videos == ("k/x.mp4",)


def test_kinetics_json(write):
    clip = {"annotations": {"label": "run", "segment": [1.0, 11.0]}, "subset": "validate"}
    task = read_task("kinetics400", write({"---QUuC4vJs": clip}))
    assert (task.videos, task.classes) == (("---QUuC4vJs_000001_000011",), ("run",))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_task("msvd", tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"v_1_2 caf\xe9\n")
    with pytest.raises(InputError, match="is no UTF-8 text"):
        read_task("msvd", tmp_path / "latin.txt")


def test_presets_are_the_authors_settings():
    d = DATASETS
    assert (d["msrvtt"].frames, d["msrvtt"].context_length, d["msrvtt"].mug_frames) == (12, 32, 32)
    assert (d["didemo"].frames, d["didemo"].context_length) == (64, 77)
    assert round(224 * d["didemo"].resize) == 256
    assert (d["lsmdc"].frames, d["lsmdc"].context_length) == (12, 32)


def test_categories_of_videos_are_kept_and_msrvtts_numbers_named(tmp_path):
    path = tmp_path / "file"
    videos = [
        {"video_id": "a", "category": 0},
        {"video_id": "b", "category": 19},
        {"video_id": "c"},
    ]
    texts = [{"video_id": v, "caption": f"of {v}"} for v in "cbab"]
    path.write_text(json.dumps({"videos": videos, "sentences": texts}))
    task = read_task("msrvtt", path)
    assert task.videos == ("c", "b", "a") and task.categories == ("", "advertisement", "music")
    assert task.keep([0, 2]).categories == ("", "music")
    assert read_task("retrieval", path).categories == ("", "19", "0")
    path.write_text("video,sentence,category\na,x,red\nb,y,\na,z,red\n")
    assert read_task("retrieval", path).categories == ("red", "")
    path.write_text('[{"video": "a", "caption": "x", "category": "red"}]')
    assert read_task("retrieval", path).categories == ("red",)
    path.write_text("video,label,category\na,run,sport\nb,eat,food\n")
    task = read_task("recognition", path)
    assert (task.classes, task.categories) == (("eat", "run"), ("sport", "food"))
    path.write_text("video,category\na,sport\nb,food\n")  # there it is the class
    task = read_task("recognition", path)
    assert (task.classes, task.categories) == (("food", "sport"), ())


def test_recognition_takes_the_views_of_the_paper():
    views = {name: data.views for name, data in DATASETS.items() if data.views != (1, 1)}
    assert views == {"kinetics400": (1, 3), "ssv2": (1, 3)}
