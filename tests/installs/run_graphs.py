"""Run the graphs of exported folders on their golden data, with nothing but onnxruntime and numpy.

Run by an environment under test: `python -P run_graphs.py FOLDER...`. Prints one line of JSON for
each graph: its path, and "error", the largest difference relative to the largest value, or
"refused", why it does not run.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime

# Role -> inputs, and the output that is compared with the golden array of the same or another name.
ROLES = {
    "video": (["video"], "frame_embeds", "frame_embeds"),
    "text": (["input_ids"], "text_embeds", "text_embeds"),
    "preprocess": (["frames"], "pixels", "pixels"),
    "score": (["token_embeds", "input_ids", "frame_embeds"], "scores", "scores"),
}


def error(path: Path) -> float:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    golden = np.load(path.parent / "golden.npz")
    inputs, output, wanted = ROLES[path.stem]
    (got,) = session.run([output], {name: golden[name] for name in inputs})
    exact = golden[wanted].astype(np.float64)
    return float(np.abs(got - exact).max() / np.abs(exact).max())


def main() -> None:
    for path in (p for folder in sys.argv[1:] for p in sorted(Path(folder).glob("*.onnx"))):
        # A child, because a runtime may abort its process over a graph.
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                found = {"error": error(path)}
            except Exception as e:
                found = {"refused": str(e)[:200]}
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        told = os.read(reading, 4096) or json.dumps({"refused": f"aborts ({status})"}).encode()
        os.close(reading)
        print(json.dumps({"graph": str(path), **json.loads(told)}), flush=True)


if __name__ == "__main__":
    main()
