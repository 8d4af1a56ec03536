"""A session without torch, so that a run starts at once; as a program it embeds into a library.

python -m tests.library.fake_stack LIBRARY FILE|FOLDER ... [--option value ...]
"""

import json
import os
import resource
import signal
import sys

import numpy as np

from stan_infer.engines.session import Session
from stan_infer.errors import StanError
from stan_infer.library import embed_library
from stan_infer.library.migrate_library import migrate_library
from tests.conftest import tiny_config


class FakeSession(Session):
    """Products of fixed random numbers with the pixels: every pixel and channel counts."""

    def __init__(self, *, seed=0, round_to=None, flip=False, config=None, **facts):
        self._config = config or tiny_config()
        s = self._config.image_size
        shape = self._config.frames * s * s * 3, self._config.embed_dim
        self._weights = np.random.default_rng(seed).standard_normal(shape, np.float32)
        self._round_to, self._flip, self._facts = round_to, flip, facts

    config = property(lambda self: self._config)

    def describe(self):
        return {"engine": "fake", "device": "cpu", "precision": "fp32", "threads": 2, **self._facts}

    def _video(self, video):
        pixels = video[..., ::-1] if self._flip else video
        scaled = (pixels - np.float32(self._config.mean)) / np.float32(self._config.std)
        flat = scaled.reshape(len(video), -1).astype(np.float32)
        found = flat @ self._weights[: flat.shape[1]]
        return np.round(found / self._round_to) * self._round_to if self._round_to else found

    def _text(self, texts):
        raise NotImplementedError

    def _free(self):
        pass


def killed_at(step, folder):
    """An audit hook that kills this process before the step that is the n-th on the folder."""
    left = step

    def hook(name, args):
        nonlocal left
        if name.startswith(("open", "os.", "sqlite3.connect")) and folder in str(args):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main(library, *words):
    """Embed; print what was done. Commits often, so that a stop finds every state."""
    split = [*words, "--"].index("--")
    options = {k: json.loads(v) for k, v in (w.split("=") for w in words[split + 1 :])}
    embed_library.COMMIT_ROWS = options.pop("commit", 2)
    if limit := options.pop("limit", None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if options.pop("hold", False):
        sys.stdin.readline()
    if step := options.pop("step", None):
        sys.addaudithook(killed_at(step, options.pop("at", os.path.abspath(library))))
    seed = options.pop("migrate", None)
    try:
        if seed is None:
            done = embed_library.embed_library(FakeSession(), words[:split], library, **options)
        else:
            done = migrate_library(library, FakeSession(seed=seed), **options)
    except StanError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    print(json.dumps(done.to_dict()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
