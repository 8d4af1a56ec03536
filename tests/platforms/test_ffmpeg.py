"""The tests of pixels and scores with FFmpeg 7 and 9, and the compilers that came with them.

Debian 12 has FFmpeg 5 (tests/cpp); PyAV, which they are compared with, brings its own.
"""

import re
import shutil
import subprocess

import pytest

from tests.cpp.conftest import Program, build
from tests.cpp.test_client import (  # noqa: F401  # pytest collects them here, too
    session,
    test_embeddings_of_video_files,
    test_frames_are_those_of_python,
    test_ids_of_ordinary_strings,
    test_labels_as_a_table,
    test_self_test_passes,
)
from tests.cpp.test_face import (  # noqa: F401  # pytest collects them here, too
    test_colours_are_those_of_a_video,
    test_decoded_frames_give_the_clip_of_their_file,
)
from tests.cpp.test_pixels import (  # noqa: F401  # pytest collects them here, too
    test_formats,
    test_interlaced,
    test_matrices_and_ranges,
    test_orientations,
    test_other_display_matrices_are_refused,
    test_what_cannot_be_the_same_is_refused,
)
from tests.cpp.test_side_by_side import (  # noqa: F401  # pytest collects them here, too
    closed,
    test_as_many_as_may_and_as_pay,
    test_damage_is_refused_as_by_one,
    test_messages_about_later_pictures,
    test_one_decoder_where_the_same_is_not_certain,
)
from tests.cpp.test_unicode import (  # noqa: F401  # pytest collects them here, too
    classes,
    facts,
    known,
    test_every_character_alone,
    test_every_character_beside_a_capital_sigma,
    test_every_pair_of_hangul,
    test_general_categories,
    test_sequences_that_compose_or_are_put_in_order,
)
from tests.platforms.conftest import LIBRARIES, copied_sources, unpacked

# Debian 13, and what becomes Debian 14: name, major version of libavformat.
RELEASES = {"trixie": 61, "forky": 63}
# What cpp/setup-debian.sh installs to compile, and a system without which nothing starts.
PACKAGES = ("?essential", "cmake", "make", "g++", "pkg-config", "nlohmann-json3-dev")


@pytest.fixture(scope="session")
def small(exported):
    """The tests of test_face.py, too, compare with `session`, which is that of test_client.py."""
    return exported


@pytest.fixture(scope="session", params=RELEASES)
def release(request):
    return request.param


@pytest.fixture(scope="session")
def plain(release, tmp_path_factory):
    """Compiled in that release; started here with its libraries."""
    root = tmp_path_factory.mktemp("debian") / release
    unpacked(root, release, *PACKAGES, *LIBRARIES.split())
    source = copied_sources(root)
    inside = ("chroot", str(root), "env", "-i", "PATH=/usr/bin")
    build("/build", "CMAKE_CXX_COMPILER=g++", source=source, before=inside)
    loader = root / "lib64" / "ld-linux-x86-64.so.2"
    start = (str(loader), "--library-path", f"{root}/usr/lib/x86_64-linux-gnu")
    yield Program(root / "build", False, before=start)
    shutil.rmtree(root)


def test_it_runs_with_that_ffmpeg(plain, release):
    program = plain.build / "stan_infer" / "stan_classify"
    loader, *libraries = plain.before
    command = [loader, "--list", *libraries, program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name = f"libavformat.so.{RELEASES[release]}"
    assert re.findall(r"(libavformat\S+) => (\S+)", loaded) == [(name, f"{libraries[-1]}/{name}")]
