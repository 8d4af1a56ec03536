"""Windows that slide over a video, on Triton Server: server_windows.py HOST:PORT VIDEO OUT.npy

The repository: stan-infer export CKPT -o REPOSITORY --format triton-server --split
Each frame passes the trunk once, on the server; the client keeps the rows of one window and sends
them to the branch. Installed: extra runtime (for the decoder), and tritonclient[grpc]."""

import sys
from collections import deque

import av
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


class Windows:
    """The last T frames of one camera, as trunk rows: T K N D numbers of 4 bytes."""

    def __init__(self, server: triton.InferenceServerClient, window: int, stride: int) -> None:
        self.server, self.stride, self.due = server, stride, window
        self.rows: deque[dict[str, np.ndarray]] = deque(maxlen=window)
        config = server.get_model_config("branch", as_json=True)["config"]
        self.names = [value["name"] for value in config["input"]]

    def push(self, frame: np.ndarray) -> np.ndarray | None:
        """Add a frame, uint8 [H, W, 3] RGB of any size; return the embedding of a full window."""
        made = self.ask("frame_pipeline", frames=frame[None])
        self.rows.append({name: made.as_numpy(name)[0] for name in self.names})
        self.due -= 1
        if self.due > 0:
            return None
        self.due = self.stride
        window = {n: np.stack([rows[n] for rows in self.rows])[None] for n in self.names}
        embeds: np.ndarray = self.ask("branch", **window).as_numpy("video_embeds")
        return embeds[0]

    def ask(self, model: str, **arrays: np.ndarray) -> triton.InferResult:
        inputs = [
            triton.InferInput(n, x.shape, np_to_triton_dtype(x.dtype)).set_data_from_numpy(x)
            for n, x in arrays.items()
        ]
        return self.server.infer(model, inputs)


if __name__ == "__main__":
    client = Windows(triton.InferenceServerClient(sys.argv[1]), window=12, stride=3)
    with av.open(sys.argv[2]) as container:
        decoded = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        np.save(sys.argv[3], [e for frame in decoded if (e := client.push(frame)) is not None])
