"""Names on the hub, against a server on this machine that speaks its protocol."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import closing

import pytest

import stan_infer as si
from stan_infer.checkpoints.catalogue import PUBLIC
from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.hub_names import COMMIT, chosen_file, parse_name
from stan_infer.checkpoints.load import inspect_checkpoint, load_model
from stan_infer.checkpoints.lock_file import LOCK
from stan_infer.errors import CheckError, InputError, MissingError, StanError
from tests.conftest import ROOT, clips
from tests.hub_server import Hub, serve
from tests.test_pages import commands, invoke, parted

constants = pytest.importorskip("huggingface_hub.constants")
REPOSITORY, NAME = "someone/stan-tiny", "hf:someone/stan-tiny"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    found = Hub()
    server, address = serve(found)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    url = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    # Where old versions keep a copy of it.
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    found.server, found.address = server, address
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def weights(tiny_model, tmp_path):
    path = tmp_path / "made.safetensors"
    si.save_model(tiny_model, path)
    return path.read_bytes()


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def gone(hub):
    hub.server.shutdown()
    hub.server.server_close()


def fetch(name=NAME, **options):
    """The path, and the lines that were said."""
    said = []
    return located(name, say=said.append, write=True, **options), said


def test_a_name_is_loaded_and_locked(hub, weights, tiny_model):
    files = {"README.md": b"x", "model.safetensors": weights, "optimizer.pt": b"x"}
    commit = hub.commit(REPOSITORY, files)
    path, (line,) = fetch()
    sha256 = hashlib.sha256(weights).hexdigest()
    assert path.read_bytes() == weights
    assert commit in line and sha256 in line and "model.safetensors" in line
    entry = json.loads(open(LOCK).read())["names"][NAME]
    facts = {"bytes": len(weights), "sha256": sha256}
    file = "model.safetensors"
    assert entry == {"commit": commit, "file": file, "files": {file: facts}}
    assert load_model(NAME).config == tiny_model.config  # and Python takes the same name
    with closing(si.open_session(NAME)) as session:
        assert session.embed_video(clips(1, 2, 16)).shape == (1, 24)


def test_a_locked_name_needs_no_network_and_keeps_its_commit(hub, weights):
    first = hub.commit(REPOSITORY, {"model.safetensors": weights})
    path, _ = fetch()
    second = hub.commit(REPOSITORY, {"model.safetensors": b"moved"})
    hub.seen.clear()
    again, (line,) = fetch(locked=True)
    assert again == path and first in line and hub.seen == []
    os.remove(LOCK)
    moved, (line,) = fetch()
    assert second in line and moved.read_bytes() == b"moved"


def test_python_reads_the_lock_and_writes_none(hub, weights):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    assert inspect_checkpoint(NAME).bytes == len(weights)
    assert not os.path.exists(LOCK)
    fetch()
    hub.commit(REPOSITORY, {"model.safetensors": b"moved"})
    assert inspect_checkpoint(NAME).bytes == len(weights)


def test_a_name_that_is_not_in_the_lock_is_refused(hub, weights):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    with pytest.raises(InputError, match=f"--locked: {NAME} is not in {LOCK}"):
        fetch(locked=True)
    assert hub.seen == []


def test_other_bytes_than_the_lock_has(hub, weights, tmp_path):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    path, _ = fetch()
    blob = os.path.realpath(path)
    data = bytearray(weights)
    data[-1] ^= 1
    open(blob, "wb").write(data)
    with pytest.raises(CheckError, match="SHA-256") as e:
        fetch()
    assert blob in str(e.value)
    os.remove(blob)  # as it says
    assert fetch(locked=True)[0].read_bytes() == weights


def test_bytes_that_are_not_those_of_the_hubs_own_hash(hub, weights):
    hub.large.add("model.safetensors")
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    fetch()
    os.remove(LOCK)
    hub.claims["model.safetensors"] = {"sha256": "0" * 64}
    with pytest.raises(CheckError, match="0{64} is expected"):
        fetch()
    assert not os.path.exists(LOCK)


def test_a_revision(hub, weights):
    old = hub.commit(REPOSITORY, {"model.safetensors": weights}, "v1")
    hub.commit(REPOSITORY, {"model.safetensors": b"new"})
    assert fetch(f"{NAME}@v1")[0].read_bytes() == weights
    assert fetch(f"{NAME}@{old}/model.safetensors")[0].read_bytes() == weights
    for revision in ("v2", "0" * 40):
        with pytest.raises(InputError, match="no such revision"):
            fetch(f"{NAME}@{revision}")


def test_a_commit_that_the_hub_has_no_more(hub, weights):
    first = hub.commit(REPOSITORY, {"model.safetensors": weights})
    path, _ = fetch()
    os.remove(os.path.realpath(path))
    os.remove(path)
    hub.commit(REPOSITORY, {"model.safetensors": b"new"})
    del hub.commits[REPOSITORY, first]
    with pytest.raises(InputError, match=f"delete its entry in {LOCK}"):
        fetch()


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["a.safetensors", "a.pth", "README.md"], "a.safetensors"),
        (["Mug-StanL14.bin", "README.md", ".gitattributes"], "Mug-StanL14.bin"),
        (["best.pth", "optimizer.bin", "training_args.bin", "x/rng_state_0.pth"], "best.pth"),
        (["open_clip_model.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], None),
        (["deep/er/one.ckpt"], "deep/er/one.ckpt"),
        (["manifest.json", "video.onnx", "a.safetensors"], "manifest.json"),
    ],
)
def test_which_file_is_read(files, wanted):
    assert chosen_file(parse_name(NAME), files) == (wanted or files[0])


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        (NAME, ["a.pth", "b.pth"], r"several files with weights \(a.pth; b.pth\); .*/a.pth"),
        (NAME, ["model.safetensors", "stan.safetensors"], "several files"),
        (NAME, ["README.md"], r"no weights \(README.md\)"),
        (NAME, [], "no weights"),
        (f"{NAME}/b.pt", ["a.pth", "b.pth"], r"no file b.pt; did you mean 'b.pth'\?; it holds a"),
    ],
)
def test_no_clear_choice_lists_the_files(name, files, said):
    with pytest.raises(InputError, match=said):
        chosen_file(parse_name(name), files)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:stan", "not of the form"),
        ("hf:a/b@", "not of the form"),
        ("hf:../etc", "not of the form"),
        ("hf:a/..", "not of the form"),
        ("hf:a/b c", "not of the form"),
        ("hf:a/b/../../etc/passwd", "no file in a repository"),
        ("hf:a/b//etc/passwd", "no file in a repository"),
        ("hf:a/b/x.plan", "give the repository of the exported folder"),
        ("hf://a/b", "give hf:a/b"),
        ("https://huggingface.co/a/b", "give hf:a/b"),
        ("https://huggingface.co/a/b/resolve/main/c/d.bin?download=true", "hf:a/b@main/c/d.bin"),
        ("https://huggingface.co/a/b/tree/v1", "give hf:a/b@v1"),
    ],
)
def test_names_of_another_form(name, said):
    with pytest.raises(InputError, match=said):
        located(name)


def test_names_of_the_catalogue_can_be_given():
    for public in PUBLIC:
        name = parse_name(public.name)
        assert name.file and COMMIT.fullmatch(name.revision), public
        assert public.what and public.figure and public.source.startswith("https://")


def test_other_sources_stay_what_they_are(tiny_model):
    for source in ("a.pth", "ViT-B-32:openai", "dir/hf:x", tiny_model, None):
        assert located(source) is source


def test_what_is_refused_before_it_is_fetched(hub):
    hub.commit(REPOSITORY, {"model.safetensors": b"x"})
    hub.claims["model.safetensors"] = {"size": 2**50}
    with pytest.raises(InputError, match=f"said to have {2**50} bytes"):
        fetch()
    for size, said in ((-1, "said to have"), (None, "states no size")):
        hub.claims["model.safetensors"] = {"size": size}
        with pytest.raises(InputError, match=said):
            fetch()
    assert not [path for _, path, _ in hub.seen if "resolve" in path]


def test_private_gated_unknown(hub):
    hub.status["a/private"] = (401, "RepoNotFound")
    hub.status["a/gated"] = (403, "GatedRepo")
    hub.status["a/broken"] = (418, "")
    for name, said in [
        ("hf:a/private", "does not exist, or is private: .* HF_TOKEN"),
        ("hf:a/unknown", "does not exist, or is private"),
        ("hf:a/gated", "is gated: accept its terms"),
        ("hf:a/broken", "could not be fetched"),
    ]:
        with pytest.raises(MissingError, match=said) as e:
            fetch(name)
        assert "\n" not in str(e.value)


def test_the_server_is_gone(hub, weights, monkeypatch):
    commit = hub.commit(REPOSITORY, {"model.safetensors": weights})
    path, _ = fetch()
    gone(hub)
    assert fetch()[0] == path  # the lock file pins it
    os.remove(LOCK)
    with pytest.raises(MissingError, match="could not be fetched .*HF_HUB_OFFLINE=1"):
        fetch()
    offline(monkeypatch)
    assert fetch()[0] == path
    assert fetch(f"{NAME}@{commit}")[0] == path
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE forbids fetching"):
        fetch("hf:someone/else")
    os.remove(os.path.realpath(path))
    os.remove(path)
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE forbids fetching"):
        fetch()


def test_an_exported_folder(hub, folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    hub.commit(REPOSITORY, files | {"README.md": b"not listed", "engines/a.plan": b"code"})
    path, _ = fetch()
    assert {p.relative_to(path).as_posix() for p in path.rglob("*.*")} == set(files)
    session = si.open_session(NAME)
    assert session.embed_video(clips(1, 2, 16)).shape == (1, 24)
    session.close()
    hub.seen.clear()
    assert fetch(locked=True)[0] == path and hub.seen == []


def test_a_manifest_that_names_files_elsewhere(hub):
    for files in ({"../../x": {}}, {"/etc/passwd": {}}, {f"f{i}": {} for i in range(300)}):
        manifest = json.dumps({"files": files}).encode()
        hub.commit(REPOSITORY, {"manifest.json": manifest})
        with pytest.raises(InputError, match="names files elsewhere, or too many"):
            fetch()
    hub.commit(REPOSITORY, {"manifest.json": b'{"files": {"video.onnx": {}}}'})
    with pytest.raises(InputError, match="names video.onnx, which is not there"):
        fetch()


def test_a_listing_that_climbs_out_is_not_followed(hub, weights, tmp_path):
    hub.commit(REPOSITORY, {"../../../evil.safetensors": b"x", "a.safetensors": weights})
    assert fetch()[0].read_bytes() == weights
    assert not list(tmp_path.rglob("evil*"))


def lock(**entry):
    """A lock file with one entry, whole but for what is given."""
    facts = {"bytes": 1, "sha256": "0" * 64}
    whole = {"commit": "0" * 40, "file": "x", "files": {"x": facts}}
    return json.dumps({"version": 1, "names": {"hf:a/b": whole | entry}})


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"version": 2, "names": {}}',
        lock(commit="main"),
        lock(file="y"),
        lock(files={}),
        lock(file="../x", files={"../x": {"bytes": 1, "sha256": "0" * 64}}),
        lock(files={"x": {"bytes": -1, "sha256": "0" * 64}}),
        lock(files={"x": {"bytes": 1, "sha256": "0"}}),
    ],
)
def test_a_lock_file_that_is_none(hub, text):
    open(LOCK, "w").write(text)
    with pytest.raises(InputError, match="delete it to have it written anew"):
        fetch("hf:a/b")
    assert open(LOCK).read() == text


def test_a_lock_file_that_cannot_be_written_is_said(hub, weights):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    os.symlink("/proc/none/x", LOCK)
    path, said = fetch()
    assert path.exists() and "later runs cannot compare it" in said[1]


def test_nothing_but_the_name_is_told(hub, weights):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    fetch()
    for _, path, agent in hub.seen:
        assert REPOSITORY in path
        assert not {"torch", "tensorflow"} & set(agent.replace(";", "/").split("/")), agent


def test_the_command_line(hub, weights, tmp_path):
    hub.commit(REPOSITORY, {"model.safetensors": weights})
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "c")}

    def run(*words, code=0):
        command = [sys.executable, "-m", "stan_infer", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    assert "not in stan-infer.lock" in run("inspect", NAME, "--locked", code=2).stderr
    done = run("inspect", NAME, "--json")
    assert json.loads(done.stdout)["file_bytes"] == len(weights)
    assert done.stderr.count("\n") == 1 and "sha256" in done.stderr
    gone(hub)
    run("inspect", "--locked", NAME)
    assert "could not be fetched" in run("inspect", f"{NAME}@main", code=3).stderr
    assert issubclass(MissingError, StanError)


@pytest.mark.slow
def test_the_commands_of_the_page(hub):
    """Those of CHECKPOINTS.md, with the demo as OWNER/NAME: its form is known by its content."""
    demo = ROOT / "examples/motion"
    files = {"best.pth": (demo / "motion.safetensors").read_bytes()}
    hub.refs["OWNER/NAME", "v1"] = hub.commit("OWNER/NAME", files)
    os.symlink(demo / "clips/red_cross_moves_left.mp4", "clip.mp4")
    _, _, text = (ROOT / "CHECKPOINTS.md").read_text().partition("## By name on the")
    (block,) = (content for _, content in parted(text.partition("\n## ")[0]))
    found = commands(block)
    assert [words[0] for words in found] == ["inspect", "run", "run"]
    for words in found:
        assert invoke(words)
    assert set(json.loads(open(LOCK).read())["names"]) == {
        "hf:OWNER/NAME",
        "hf:OWNER/NAME@v1/best.pth",
    }
