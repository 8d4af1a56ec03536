"""Hostile variants of a folder with trunk and branch: hashes are right but where they are the case.

A case changes the manifest and the files of a folder, which are hashed anew. More: folders by name,
of "other" weights with the same config, and of "less" branch layers.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from stan_infer.artefacts.config_note import CONFIG_KEY
from tests.exported import rewrite
from tests.hostile.folders import GRAPHS, constants, node

Case = Callable[[Path, dict[str, Any], dict[str, Path]], None]
CASES: dict[str, tuple[Case, bool]] = {}  # and whether files are hashed anew


def case(name: str, hashes: bool = True) -> Callable[[Case], Case]:
    def add(change: Case) -> Case:
        CASES[name] = change, hashes
        return change

    return add


def entry(manifest, role):
    return next(g for g in manifest["graphs"] if g["role"] == role)


def edited(folder, file, change):
    model = onnx.load(str(folder / file))
    change(model)
    (folder / file).write_bytes(model.SerializeToString())


for role in ("trunk", "branch"):

    @case(f"the {role} of another model, with the hash of this one", hashes=False)
    def _(folder, manifest, more, role=role):
        shutil.copy(more["other"] / f"{role}.onnx", folder)

    @case(f"the {role} of another model of another K")
    def _(folder, manifest, more, role=role):
        shutil.copy(more["less"] / f"{role}.onnx", folder)

    @case(f"the {role} of another K, with its entry")
    def _(folder, manifest, more, role=role):
        shutil.copy(more["less"] / f"{role}.onnx", folder)
        wanted = entry(json.loads((more["less"] / "manifest.json").read_text()), role)
        entry(manifest, role).update(wanted)

    @case(f"no entry of the {role}")
    def _(folder, manifest, more, role=role):
        manifest["graphs"].remove(entry(manifest, role))
        (folder / f"{role}.onnx").unlink()

    @case(f"no {role}.onnx", hashes=False)
    def _(folder, manifest, more, role=role):
        (folder / f"{role}.onnx").unlink()

    @case(f"the config of {role}.onnx is another")
    def _(folder, manifest, more, role=role):
        def change(model):
            (note,) = [p for p in model.metadata_props if p.key == CONFIG_KEY]
            note.value = "0" * 64

        edited(folder, f"{role}.onnx", change)

    @case(f"{role}.onnx has no config")
    def _(folder, manifest, more, role=role):
        edited(folder, f"{role}.onnx", lambda model: model.ClearField("metadata_props"))

    @case(f"an empty {role}.onnx")
    def _(folder, manifest, more, role=role):
        (folder / f"{role}.onnx").write_bytes(b"")

    @case(f"{role}.onnx is another's video.onnx")
    def _(folder, manifest, more, role=role):
        shutil.copy(folder / "video.onnx", folder / f"{role}.onnx")

    @case(f"{role}.onnx lies elsewhere")
    def _(folder, manifest, more, role=role):
        (folder / f"{role}.onnx").rename(folder.parent / f"{role}.onnx")
        entry(manifest, role)["file"] = f"../{role}.onnx"

    @case(f"frames of the {role} without end")
    def _(folder, manifest, more, role=role):
        entry(manifest, role)["dims"]["frames"] = [1, 2**31 - 1]

    @case(f"frames of the {role} reversed")
    def _(folder, manifest, more, role=role):
        entry(manifest, role)["dims"]["frames"] = [5, 2]

    @case(f"frames of the {role} of 0")
    def _(folder, manifest, more, role=role):
        entry(manifest, role)["dims"]["frames"] = [0, 0]

    @case(f"frames of the {role} that are no pair")
    def _(folder, manifest, more, role=role):
        entry(manifest, role)["dims"]["frames"] = [1, 2, 3]


@case("swapped files")
def _(folder, manifest, more):
    trunk, branch = entry(manifest, "trunk"), entry(manifest, "branch")
    trunk["file"], branch["file"] = branch["file"], trunk["file"]


@case("swapped roles")
def _(folder, manifest, more):
    trunk, branch = entry(manifest, "trunk"), entry(manifest, "branch")
    trunk["role"], branch["role"] = "branch", "trunk"


@case("two trunks")
def _(folder, manifest, more):
    entry(manifest, "branch")["role"] = "trunk"


@case("another K in the manifest")
def _(folder, manifest, more):
    manifest["model"]["branch_layers"] = 1


@case("a huge K in the manifest")
def _(folder, manifest, more):
    manifest["model"]["branch_layers"] = 2**40


@case("batch of the branch without end")
def _(folder, manifest, more):
    entry(manifest, "branch")["dims"]["batch"] = [1, 2**31 - 1]


for count in (4096, 2**20):

    @case(f"a branch of {count} clips at once")
    def _(folder, manifest, more, count=count):
        """A session fills up what is missing of a fixed batch."""

        def change(model):
            for port in (*model.graph.input, *model.graph.output):
                port.type.tensor_type.shape.dim[0].dim_value = count

        edited(folder, "branch.onnx", change)
        branch = entry(manifest, "branch")
        branch["dims"]["batch"] = [count, count]
        for port in (*branch["inputs"], *branch["outputs"]):
            port["shape"][0] = count


@case("rows of another width in the manifest")
def _(folder, manifest, more):
    for port in entry(manifest, "trunk")["outputs"]:
        port["shape"][-1] = 2**30


@case("a trunk that gives one frame less")
def _(folder, manifest, more):
    def change(model):
        constants(model, one=[1], end=[2**40])
        for step in model.graph.node:
            step.output[:] = ["all" if name == "rows_0" else name for name in step.output]
        model.graph.node.append(node("Slice", ["all", "one", "end"], ["rows_0"]))

    edited(folder, "trunk.onnx", change)


@case("a trunk that mixes its frames into one")
def _(folder, manifest, more):
    def change(model):
        constants(model, axis=[0])
        for step in model.graph.node:
            step.output[:] = ["all" if name == "rows_0" else name for name in step.output]
        model.graph.node.append(node("ReduceMean", ["all", "axis"], ["rows_0"]))

    edited(folder, "trunk.onnx", change)


for name in ("endless_loop", "outer", "filled", "long_work", "branches", "functions"):

    @case(f"a branch with {name}")
    def _(folder, manifest, more, name=name):
        edited(folder, "branch.onnx", GRAPHS[name])


@case("other names of the rows")
def _(folder, manifest, more):
    for port in entry(manifest, "branch")["inputs"]:
        port["name"] = port["name"].replace("rows_", "columns_")


@case("a trunk in int64")
def _(folder, manifest, more):
    def change(model):
        (given,) = model.graph.input
        shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
        given.CopyFrom(helper.make_tensor_value_info(given.name, onnx.TensorProto.INT64, shape))

    edited(folder, "trunk.onnx", change)


def write(source: Path, out: Path, name: str, more: dict[str, Path]) -> Path:
    """Write one hostile variant of the folder `source` and return it."""
    shutil.copytree(source, out)
    change, anew = CASES[name]
    if anew:
        rewrite(out, lambda manifest: change(out, manifest, more))
    else:
        change(out, {}, more)
    return out
