"""The sets of weights in one file: a model's own, and averages of them that trainers store beside.

A set is a state dict of its own, or those keys of one that begin as an average's do. Which of two
sets is the average does not follow from names alone: some trainers store the average in the place
of the ordinary weights, because that is what is loaded afterwards.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from stan_infer.checkpoints.key_names import inverted, without_wrappers
from stan_infer.errors import InputError

EMA = "ema"  # stands for the averaged set, whatever it is called
ORDINARY, AVERAGED, OTHER = "ordinary", "averaged", "other"
BEFORE, UNKNOWN = "before averaging", "averaged or not"
_WORDS = {"ema", "ewa", "swa", "averaged", "average", "avg"}
# What averages keep among their weights: torch's AveragedModel, mmengine, LitEma, ema-pytorch.
_COUNTERS = {"n_averaged", "steps", "num_updates", "decay", "initted", "step", "updates"}
# Two networks of one training. Which of them is the model, no name tells.
_PAIR = {"student", "teacher"}
_SHOWN = 8  # sets in a message
# Averages whose names may hold no dots: LitEma, mmcv's EMAHook.
_MANGLED: tuple[Callable[[str], str], ...] = (
    lambda name: name.replace(".", ""),
    lambda name: name.replace(".", "_"),
)


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """One set of weights."""

    name: str  # for `--weights`
    place: str  # the file's state dict, by its path in the file
    names: Mapping[str, str]  # key in the file -> name of the weight in the bare model
    kind: str
    is_default: bool = False

    def keys(self) -> dict[str, str]:
        """Return name -> key; InputError where two keys have one name."""
        return inverted(self.names)

    def __str__(self) -> str:
        """Describe it for a message."""
        kind = "" if self.name == self.kind else f", {self.kind}"
        return f"{self.name[:120]} ({len(self.names)} tensors{kind})"


def find_sets(
    places: Mapping[str, Collection[str]], ordinary: str | None, hints: Mapping[str, object]
) -> list[WeightSet]:
    """Return the sets of a file, the default first if there is one.

    places: path of each state dict -> its keys. ordinary: the path of the default one, or None.
    hints: of the file. Beside a default, sets without half of its names are left out: they are no
    other weights of the same model.
    """
    found: list[WeightSet] = []
    for place in sorted(places, key=lambda p: p != ordinary):  # stable
        found += _split(place, places[place], is_main=place == ordinary)
    if ordinary is None or not found or not found[0].is_default:
        return found
    main = found[0]
    others = [
        dataclasses.replace(s, kind=_kind(s, main, hints))
        for s in found[1:]
        if _is_same(s.names.values(), main.names.values())
    ]
    if any(s.kind == BEFORE for s in others):
        main = dataclasses.replace(main, kind=AVERAGED)
    return [main, *others]


def choose(
    sets: Sequence[WeightSet], asked: str | None, nameless: Sequence[str] = ()
) -> tuple[WeightSet, str | None]:
    """Return the set that was asked for (None: the default), and what the user should be told.

    asked: a set's name, or "ema" for the averaged one. nameless: lists of tensors in the file, by
    their paths, for the error: averages are among them. Raises InputError, with what is there, for
    a name that no set has and where it does not decide.
    """
    if not sets:
        raise InputError("it holds counters of a trainer, and no weights: give the checkpoint")
    listed = ", ".join(map(str, sets[:_SHOWN])) + (", ..." if len(sets) > _SHOWN else "")
    if asked is None:
        if sets[0].is_default:
            return sets[0], _told(sets)
        raise InputError(
            f"it does not show which of its weights are the model's; it has {listed}: choose, as "
            f"with --weights {sets[0].name}"
        )
    named = [s for s in sets if s.name == asked]
    if not named and asked == EMA:
        named = [s for s in sets if s.kind == AVERAGED]
        if not named and any(s.kind == UNKNOWN for s in sets):
            raise InputError(
                f"it has {listed}: mmcv's EMAHook exchanges the two after every epoch, so the file "
                f"does not show which is the average; choose --weights {sets[0].name}, which mmcv "
                "loads, or the other one by its name"
            )
    if len(named) != 1:
        fault = f"it has {'several sets' if named else 'no set'} of weights called '{asked}'"
        if asked == EMA:
            fault = f"it has {'several averages' if named else 'no average'} of its weights"
        if nameless:
            listed += f", and lists of tensors without names ({', '.join(nameless)}), not read"
        if len(sets) == 1:
            raise InputError(f"{fault}; its only set is {listed}: leave --weights out")
        raise InputError(f"{fault}; its sets are {listed}: choose one of them with --weights")
    return named[0], f"{named[0]} is read" if named[0].kind in (BEFORE, UNKNOWN) else None


def _told(sets: Sequence[WeightSet]) -> str | None:
    """What to say where nobody asked for a set, and there are several."""
    main, others = sets[0], sets[1:]
    if not others:
        return f"{main} is read, and the file has no others" if main.kind == AVERAGED else None
    told = f"{main} is read; the file also has {', '.join(map(str, others[:_SHOWN]))}"
    if main.kind == AVERAGED:
        return f"{told}: the trainer put the average in the place of the ordinary weights"
    is_one = sum(s.kind == AVERAGED for s in others) == 1
    return f"{told}: --weights {EMA if is_one else others[0].name} reads it instead"


def _split(place: str, keys: Collection[str], *, is_main: bool) -> list[WeightSet]:
    """Part the keys of one state dict: those of averages, by how they begin, and the rest first."""
    names = _bare({key: key for key in keys})
    parts: dict[str, dict[str, str]] = {}
    own: dict[str, str] = {}
    for key, name in names.items():
        first, dot, rest = name.partition(".")
        if not _is_averages(first):
            own[key] = name
        elif dot:
            parts.setdefault(first, {})[key] = rest
        else:  # no dots at all: ema_backbone_layers_0_...
            word, _, rest = name.partition("_")
            parts.setdefault(f"{word}_", {})[key] = rest
    if not own and len(parts) == 1:  # all of it is one average's
        return [WeightSet(place or next(iter(parts)), place, names, AVERAGED, is_main)]
    bare = _bare(own)
    averages = []
    for first, part in parts.items():
        above = f"{place}." if place and not is_main else ""
        averaged = _bare(part)
        if 2 * len(averaged) >= len(bare):  # else comparing many small parts would take long
            averaged = _with_dots(averaged, bare.values())
        if own and not _is_same(averaged.values(), bare.values()):
            own |= {key: names[key] for key in part}  # a layer that is only called so
        else:
            averages.append(WeightSet(above + first, place, averaged, AVERAGED))
    bare = _bare(own)
    if pair := _pair(bare):
        above = f"{place}." if place and not is_main else ""
        return [WeightSet(above + w, place, part, OTHER) for w, part in pair.items()] + averages
    kind = AVERAGED if _is_averages(place) and not averages else OTHER
    main = WeightSet(place or ORDINARY, place, bare, ORDINARY if is_main else kind, is_main)
    return [main, *averages] if bare else averages


def _pair(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Part the names of a student and its teacher, and others; empty where the two are not there.

    The others, such as the centre of a loss, come last, as "ordinary".
    """
    parts: dict[str, dict[str, str]] = {}
    if all(name.startswith("model.") for name in names.values()):  # a class around the two
        names = {key: name.removeprefix("model.") for key, name in names.items()}
    for key, name in names.items():
        first, dot, rest = name.partition(".")
        is_one = bool(dot) and bool(_PAIR & set(first.lower().split("_")))
        parts.setdefault(first if is_one else ORDINARY, {})[key] = rest if is_one else name
    words = sorted(parts, key=lambda w: (w == ORDINARY, w))
    return {w: _bare(parts[w]) for w in words} if len(set(words) - {ORDINARY}) > 1 else {}


def _bare(names: Mapping[str, str]) -> dict[str, str]:
    """Take counters and the names of wrappers out of key -> name."""
    kept = {key: name for key, name in names.items() if name not in _COUNTERS}
    bare = without_wrappers(kept.values())
    return {key: bare[name] for key, name in kept.items() if bare[name] not in _COUNTERS}


def _is_same(names: Collection[str], main: Collection[str]) -> bool:
    """Whether names are those of the same model: at least half of `main` are among them."""
    if 2 * len(names) < len(main):  # without work that grows with both
        return False
    wanted = _relative(main)
    return 2 * len(wanted & _relative(names)) >= len(wanted)


def _relative(names: Iterable[str]) -> set[str]:
    """Names without the word that all of them begin with, such as "model."."""
    names = set(names)
    firsts = {name.partition(".")[0] for name in names}
    return {name.partition(".")[2] for name in names} if len(firsts) == 1 else names


def _with_dots(names: dict[str, str], own: Collection[str]) -> dict[str, str]:
    """Write the names of an average that may hold no dots as those of the ordinary weights."""
    if any("." in name for name in names.values()):
        return names
    for mangle in _MANGLED:
        for full in (own, _relative(own)):
            whole: dict[str, list[str]] = {}
            for name in full:
                whole.setdefault(mangle(name), []).append(name)
            if all(len(whole.get(name, [])) == 1 for name in names.values()):
                return {key: whole[name][0] for key, name in names.items()}
    return names


def _kind(one: WeightSet, main: WeightSet, hints: Mapping[str, object]) -> str:
    """What a set is beside the default one, by the trainers that are known to exchange the two."""
    if one.place == "ema_state_dict" and hints.get("layout") == "mmengine":
        return BEFORE  # EMAHook: the average is in state_dict
    if one.place == "current_model_state" and main.place == "state_dict":
        return BEFORE  # Lightning's WeightAveraging
    if one.place == main.place and one.name.endswith("_"):
        return UNKNOWN  # mmcv's EMAHook
    return one.kind


def _is_averages(name: str) -> bool:
    """Whether a name says that something is an average: EMACallback, model_ema, averaged."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return bool(_WORDS & set(re.split(r"[\W_]+", words)))
