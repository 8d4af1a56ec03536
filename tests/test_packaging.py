"""The wheel: one top-level name, every module, importable from elsewhere."""

import shutil
import subprocess
import sys
import zipfile

from tests.conftest import ROOT


def test_wheel_holds_every_module_and_one_top_level_name(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "out", ".*_cache")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignore)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, str(source)], check=True, capture_output=True)  # wheel from sdist
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {"stan_infer/py.typed"}
    expected |= {f"stan_infer/kernels/{n}.json" for n in ("compiled", "tuned")}
    of_text = ("clip_merges.txt.gz", "LICENSE-CLIP.txt", "templates.json")
    expected |= {f"stan_infer/text/{n}" for n in of_text}
    expected.add("stan_infer/export/golden_clip.mp4")
    expected |= {f"stan_infer/library/canaries/{i}.mp4" for i in range(4)}
    expected |= {f"stan_infer/library/server/page.{kind}" for kind in ("css", "html", "js")}
    top = ROOT / "stan_infer"
    for path in (*top.glob("*.py"), *top.glob("*/*.py"), *top.glob("*/*/*.py")):
        expected.add(f"stan_infer/{path.relative_to(top)}")
    assert names == expected

    target = tmp_path / "elsewhere"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(target), str(wheel)], check=True, capture_output=True)
    tops = {p.name for p in target.iterdir() if p.suffix != ".dist-info" and p.name != "bin"}
    assert tops == {"stan_infer"}
    modules = sorted(
        n[:-3].replace("/", ".").removesuffix(".__init__") for n in names if n[-3:] == ".py"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import importlib\n"
        f"for m in {[m for m in modules if not m.endswith('__main__')]!r}:\n"
        "    module = importlib.import_module(m)\n"
        f"    assert module.__file__.startswith({str(target)!r}), module.__file__\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)
