"""What the verdict says of small samples and of doubtful figures."""

from pathlib import Path

import pytest

from stan_infer.evaluation.metrics import paired_interval
from stan_infer.evaluation.task import Task
from stan_infer.quantisation import sentence as words
from stan_infer.quantisation.bound import Bound, Measured
from stan_infer.quantisation.sentence import deciding, facts, sentence, table_rows

ROWS = [
    {"engine": "ort", "precision": "fp32", "cosine": 1.0},
    {"engine": "ort", "precision": "int8", "cosine": 0.9999983, "is_met": True},
    {"engine": "openvino", "precision": "int8", "cosine": 0.98, "is_met": False},
]
SPEED = {"beside": "fp32", "low": 1.5, "ratio": 1.62, "high": 1.7, "is_starved": False}


def record(bound, measured, **changes):
    verdict = {
        "precision": "int8", "is_met": measured.is_met, "is_simulated": False, "is_faster": True,
        "rows": ROWS, **measured.figures(),
        "speeds": {"ort": SPEED | {"is_met": True},
                   "openvino": SPEED | {"ratio": 3.0, "low": 2.9, "high": 3.1, "is_met": False}},
    }  # fmt: skip
    verdict |= {k: changes.pop(k) for k in list(changes) if k in verdict}
    found = {"clips": 150, "checked": 50, "kept": [], "remarks": [], "bound": bound.figures()}
    found |= {"verdict": verdict, **changes}
    verdict["sentence"] = sentence(found, bound, measured)
    return found


def told(bound, measured, **changes):
    return record(bound, measured, **changes)["verdict"]["sentence"]


def labelled(*labels, classes=("x", "y"), **more):
    names = tuple(f"{i}.mp4" for i in range(len(labels)))
    paths = [Path(name) for name in names]
    return Bound(task=Task(names, labels=labels, classes=classes), paths=paths, **more)


def test_figures_have_the_digits_that_decide():
    assert deciding(0.9999983, 1.0, 5) == "0.999998"
    assert deciding(0.99973, 0.995, 5) == "0.99973"
    assert deciding(1.0, 1.0, 5) == "1.00000"
    assert deciding(0.50004, 0.5, 2) == "0.5000" + "4"
    assert deciding(float("nan"), 0.5, 2) == "nan"
    bound = Bound(min_cosine=1.0)
    found = record(bound, Measured(cosine=0.9999983, mean_cosine=1.0, is_met=False))
    assert (
        "does not reach a cosine of 1: the best found has a smallest cosine to fp32 of 0.999998"
        in (found["verdict"]["sentence"])
    )
    assert [row["cosine"] for row in table_rows(found)] == ["1.00000", "0.999998", "0.98000"]
    assert facts(found)["smallest cosine, ort"] == "0.999998"


def test_the_sentence_says_what_it_rests_on():
    cosine = Measured(cosine=0.99974, mean_cosine=0.9999)
    said = told(Bound(), cosine, kept=["a"])
    assert said == (
        "int8 is faster here: 1.62x (1.50 to 1.70) the speed of fp32 in ort, 3.00x (2.90 to 3.10) "
        "of fp32 in openvino; it has a smallest cosine to fp32 of 0.99974 in ort and 0.98000 in "
        "openvino with 1 linear in fp32, checked on 50 clips held out, while 150 clips set the "
        "ranges (about 1 in 51 clips like these is lower); in openvino it misses the bound"
    )
    assert "measured on the 1 clip that set the ranges" in told(Bound(), cosine, clips=1, checked=0)


@pytest.mark.parametrize(
    ("lost", "gained", "count", "says"),
    [
        (0, 0, 1, "0.00 points lost of top1 (95 %: between 79.35 points gained and 79.35 points"),
        (0, 0, 8, "only the estimate keeps at most 0.5 points lost, the interval does not: 765 or"),
        (2, 6, 1000, "0.40 points gained of top1"),
        (5, 0, 1000, "only the estimate keeps at most 0.5 points lost, the interval does not"),
    ],
)
def test_few_questions_tell_little(lost, gained, count, says):
    low, high = paired_interval(lost, gained, count)
    measured = Measured(drop=100 * (lost - gained) / count, interval=(100 * low, 100 * high),
                        agreement=99.0)  # fmt: skip
    said = told(labelled(0, 1), measured, checked=count, rows=[])
    assert says in said and "labelled clip" in said
    assert ("or more would tell" in said) == (count < 765)


def test_enough_questions_need_no_remark():
    low, high = paired_interval(0, 0, 765)
    assert high <= 0.005 < paired_interval(0, 0, 764)[1]
    said = told(labelled(0, 1), Measured(drop=0.0, interval=(100 * low, 100 * high)), rows=[])
    assert "only the estimate" not in said
    assert words.needed(labelled(0, 1, max_drop=0)) is None


def test_what_labels_cannot_tell_is_told():
    def remarks(bound, copies=None):
        return words.label_remarks(bound, bound, copies or {})

    assert remarks(labelled(0, 1, 0)) == []
    assert remarks(labelled(1, 1, 1)) == ["all have one class, y"]
    assert remarks(labelled(0, 0, classes=("x",))) == [
        "there is only one class, so that every answer is right"
    ]
    held = labelled(0, 1, 1, held=[Path("1.mp4"), Path("2.mp4")])
    assert remarks(held) == ["all have one class, y"]
    torn = remarks(labelled(0, 1, 1), {Path("1.mp4"): Path("0.mp4")})
    assert torn == [
        "1 labelled video with the content of another left out",
        "1 content with two labels (1.mp4 and 0.mp4)",
    ]
    assert remarks(Bound(task=Task(("a",), texts=("a", "b"), owners=(0, 0)), paths=[Path("a")]))
    found = record(labelled(1, 1), Measured(drop=0.0, interval=(-1.0, 1.0)), remarks=["all one"])
    assert found["verdict"]["sentence"].endswith("; all one")


@pytest.mark.parametrize(
    ("is_faster", "says"),
    [
        (None, "whether int8 is faster cannot be told on this machine now: 1.62x (1.50 to 1.70)"),
        (False, "int8 is no faster here: 1.62x (1.50 to 1.70) the speed of fp32 in ort"),
    ],
)
def test_speeds(is_faster, says):
    said = told(Bound(), Measured(cosine=0.999, mean_cosine=0.9999), is_faster=is_faster)
    assert said.startswith(says)


STARVED = SPEED | {"is_met": True, "is_starved": True}


@pytest.mark.parametrize(
    ("speeds", "says"),
    [
        ({"ort": STARVED}, "other work used the CPUs while ort was timed"),
        (
            {"ort": STARVED, "openvino": STARVED},
            "other work used the CPUs while ort and openvino were timed",
        ),
        (
            {"ort": STARVED, "openvino": SPEED | {"is_met": True, "low": 0.9}},
            "1.62x (0.90 to 1.70) the speed of fp32 in openvino, other work used the CPUs "
            "while ort was timed",
        ),
    ],
)
def test_a_starved_engine_has_no_ratio(speeds, says):
    measured = Measured(cosine=0.999, mean_cosine=1.0)
    found = record(Bound(), measured, speeds=speeds, is_faster=None, rows=ROWS[:2])
    assert found["verdict"]["sentence"] == (
        f"whether int8 is faster cannot be told on this machine now: {says}; run it again when "
        "nothing else runs; int8 has a smallest cosine to fp32 of 0.99900, checked on 50 clips "
        "held out, while 150 clips set the ranges (about 1 in 51 clips like these is lower)"
    )
    assert table_rows(found)[1]["speed"] == "starved"
