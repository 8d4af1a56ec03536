"""The install command in a hint works with pip, however this package was installed."""

import json
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from stan_infer.system import packages
from stan_infer.system.packages import install_command, requirements
from tests.conftest import ROOT

LINES = [
    "numpy>=1.26",
    'onnxruntime>=1.20; extra == "runtime"',
    'av>=17; extra == "runtime"',
    'stan-infer[runtime]; extra == "cpu"',
    'torch>=2.9; extra == "cpu"',
    'old>=1; python_version < "3" and extra == "cpu"',
    'nowhere>=1; sys_platform == "none" and extra == "absent"',
]


class Installed:
    requires = LINES

    def __init__(self, url: str | None, info: dict | None = None) -> None:
        self.origin = None if url is None else json.dumps({"url": url, **(info or {})})
        self.above = Path("site-packages that is not there")

    def locate_file(self, name: str) -> Path:
        return self.above / name

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin


@pytest.fixture
def installed(monkeypatch):
    def place(url, info=None):
        monkeypatch.setattr(packages, "distribution", lambda name: Installed(url, info))

    return place


def words(command: str) -> list[str]:
    assert command.startswith("pip install ")
    return shlex.split(command)[2:]


@pytest.mark.parametrize("name", ["clone", "with space", "it's $HOME", "a[b]"])
def test_a_clone_and_a_folder_are_named_by_their_path(installed, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    installed(folder.as_uri(), {"dir_info": {"editable": True}})
    assert words(install_command("cpu")) == ["-e", f"{folder}[cpu]"]
    installed(folder.as_uri(), {"dir_info": {}})
    assert words(install_command("cpu")) == [f"{folder}[cpu]"]


def test_a_wheel_that_is_still_there(installed, tmp_path):
    wheel = tmp_path / "stan_infer-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    installed(wheel.as_uri(), {"archive_info": {}})
    assert words(install_command("runtime", "cpu")) == [f"{wheel}[runtime,cpu]"]
    assert words(install_command("cpu", options="--no-deps")) == ["--no-deps", f"{wheel}[cpu]"]


def test_metadata_in_the_clone_itself(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").touch()
    here = Installed(None)
    here.above = tmp_path
    monkeypatch.setattr(packages, "distribution", lambda name: here)
    assert words(install_command("cpu")) == ["-e", f"{tmp_path}[cpu]"]


@pytest.mark.parametrize(
    "url", [None, "file:///no/such/stan_infer-0.1.0-py3-none-any.whl", "https://x/stan_infer.whl"]
)
def test_else_the_packages_themselves(installed, url):
    installed(url)
    assert words(install_command("runtime")) == ["onnxruntime>=1.20", "av>=17"]
    found = words(install_command("cpu"))
    assert sorted(found) == ["av>=17", "onnxruntime>=1.20", "torch>=2.9"]
    assert all(Requirement(word).marker is None for word in found)


def test_an_extra_without_a_package_for_this_platform(installed):
    installed(None)
    assert install_command("absent").startswith("no package of extra absent exists for ")


def test_a_tree_that_was_never_installed(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", absent)
    assert words(install_command("cpu")) == ["-e", f"{ROOT}[cpu]"]


def test_markers_follow_another_python():
    lines = ["numpy>=1.26; python_version < '3.13'", "numpy>=2.1; python_version >= '3.13'"]
    for version, wanted in (("3.12", "numpy>=1.26"), ("3.13", "numpy>=2.1")):
        here = {"python_version": version, "python_full_version": f"{version}.0"}
        assert [str(r) for r in requirements(lines, ("",), here)] == [wanted]
        assert requirements(lines, ("runtime",), here) == []


def test_no_text_of_the_package_names_an_index_that_does_not_have_it():
    for folder in ("stan_infer", "kernels", "export", "examples"):
        for path in Path(ROOT / folder).rglob("*.py"):
            assert "stan-infer[" not in path.read_text(), path
    for page in ROOT.glob("*.md"):
        assert "stan-infer[" not in page.read_text(), page


def test_every_extra_that_is_named_exists():
    """`require` and install_command are given extras of pyproject.toml, each by its name."""
    import ast
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known, seen = set(project["optional-dependencies"]), 0
    for folder in ("stan_infer", "kernels", "export"):
        for path in Path(ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(getattr(node, "func", None), "id", None)
                if name not in ("require", "install_command"):
                    continue
                given = node.args[2:] if name == "require" else node.args
                for arg in given:
                    if isinstance(arg, ast.Constant):
                        seen += 1
                        assert arg.value in known, (path, arg.value)
    assert seen > 20
