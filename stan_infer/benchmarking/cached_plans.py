"""TensorRT plans for `bench`: built once per graph, version, GPU and profile, and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from stan_infer.artefacts.folder import ENGINES_FOLDER, MANIFEST, read_artefact, sha256
from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.system.atomic import new_file
from stan_infer.system.cache_folder import cache_folder
from stan_infer.system.gpus import nvidia_gpus
from stan_infer.tensorrt_plans.build import build_plans, check_buildable
from stan_infer.tensorrt_plans.options import DEFAULT_CLIPS, PlanOptions
from stan_infer.tensorrt_plans.plan_file import FORMATS, Plan, read_plan, sidecar_path


def add_plan(
    folder: Path,
    engine: str,
    batches: Sequence[int],
    frames: Sequence[int],
    say: Callable[[str], None],
) -> Plan:
    """Put a plan of the video graph into an exported folder: copied from the cache, or built.

    Its profiles are like those of an export: one for one clip of `frames[0]` frames, one for all
    other sizes, as far as the largest of `batches`. Raises MissingError if it cannot be built here.
    """
    artefact = read_artefact(folder, check_hashes=False)
    graph = artefact.graph("video")
    assert graph is not None
    most = {name: high for name, (_, high) in graph.dims.items()}
    options = PlanOptions(
        roles=("video",),
        batch=[(1, 1, 1), (1, 1, min(max(DEFAULT_CLIPS, *batches), most["batch"]))],
        frames=[(frames[0],) * 3, (1, frames[0], most["frames"])],
    )
    module = check_buildable(engine, options)
    gpu = next(iter(nvidia_gpus()), None) if engine == "trt" else None
    what = [
        *(sha256(folder / name) for name in ("video.onnx", MANIFEST)),
        engine,
        module.__version__,
        gpu,
        options.batch,
        options.frames,
    ]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    kept = cache_folder("engines") / key
    found = _from_cache(kept, folder)
    if found:
        say(f"taking {found.path.name} from {kept}")
        return found
    say(f"building a plan with {FORMATS[engine]}; it is kept in {kept}")
    try:
        (plan,) = build_plans(folder, engine, options)
    except (InputError, CheckError) as e:
        # MissingError, because the other engines still run then.
        raise MissingError(f"no plan of {FORMATS[engine]} could be built: {e}") from e
    say(f"built {plan.path.name} in {plan.sidecar['build_seconds']:.0f} s")
    try:
        kept.mkdir(exist_ok=True)
        for path in (plan.path, sidecar_path(plan.path)):  # no plan is read without its sidecar
            with new_file(kept / path.name) as temporary:
                shutil.copyfile(path, temporary)
    except (InputError, OSError) as e:
        say(f"the plan is not kept for the next time: {e}")
    return plan


def _from_cache(kept: Path, folder: Path) -> Plan | None:
    for path in kept.glob("*.plan"):
        try:
            read_plan(path)
        except InputError:
            continue  # a copy that was cut off, as by a full disk: the plan is built again
        engines = folder / ENGINES_FOLDER
        engines.mkdir(exist_ok=True)
        for kept_file in (path, sidecar_path(path)):
            shutil.copyfile(kept_file, engines / kept_file.name)
        return read_plan(engines / path.name)
    return None
