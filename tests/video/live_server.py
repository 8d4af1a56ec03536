"""Servers on this machine that stream video: HTTP, and RTSP over its own connection."""

import socket
import struct
import threading
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np

from tests.video.broken_videos import picture

STALL, BREAK = "stall", "break"  # what a connection does in place of sending


def transport_stream(path, frames=50, *, size=(48, 64), rate=25, gop=10, times=None):
    """H.264 in MPEG-TS, of which any part may be cut out or put behind another; its bytes.

    times: of frames, in units of 1 / rate.
    """
    with av.open(str(path), "w", format="mpegts") as out:
        options = {"threads": "1", "tune": "zerolatency"}
        stream = out.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


@contextmanager
def streaming(*connections, rtsp=False, length=None):
    """Serve each connection in turn and yield the address; later ones get no answer but an error.

    A connection is a list of bytes, which are sent at once, of STALL, which sends nothing until the
    client leaves, and of events (threading.Event), which are waited for. Its end is that of the
    connection. length: bytes of all of it, as a server of files says.
    """
    said = "" if length is None else f"Content-Length: {length}\r\n"
    server = socket.create_server(("127.0.0.1", 0))
    left = list(connections)

    def serve():
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                try:
                    if not left:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")
                    elif rtsp:
                        _rtsp(client, left.pop(0))
                    else:
                        client.recv(65536)
                        client.sendall(f"HTTP/1.0 200 OK\r\n{said}\r\n".encode())
                        _play(client, left.pop(0), client.sendall)
                except OSError:
                    pass  # the client has left

    threading.Thread(target=serve, daemon=True).start()
    try:
        kind = "rtsp" if rtsp else "http"
        yield f"{kind}://127.0.0.1:{server.getsockname()[1]}/live"
    finally:
        server.close()


def _play(client, actions, send):
    for action in actions:
        if action == STALL:
            while client.recv(65536):
                pass
        elif isinstance(action, threading.Event):
            action.wait()
        else:
            send(action)


def _rtsp(client, actions):
    """Answer until PLAY, then send MPEG-TS in RTP packets between the answers."""
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    sdp += "m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
    asked, method = b"", ""
    while method != "PLAY":
        asked += client.recv(65536)
        while b"\r\n\r\n" in asked:
            request, _, asked = asked.partition(b"\r\n\r\n")
            method = request.split()[0].decode()
            number = next(x for x in request.split(b"\r\n") if x.lower().startswith(b"cseq"))
            head = f"RTSP/1.0 200 OK\r\n{number.decode()}\r\nSession: 1\r\n"
            body = ""
            if method == "DESCRIBE":
                body = sdp
                head += f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n"
            if method == "SETUP":
                head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            if method == "OPTIONS":
                head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            client.sendall(f"{head}\r\n{body}".encode())
    sequence = 0

    def send(data):
        nonlocal sequence
        for i in range(0, len(data), 7 * 188):
            packet = struct.pack(">BBHII", 0x80, 33, sequence & 0xFFFF, 0, 7)
            packet += data[i : i + 7 * 188]
            client.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            sequence += 1

    _play(client, actions, send)


def damaged(data, begin, end, seed=0):
    """The bytes with noise from `begin` to `end` (shares), in the payload of every packet there."""
    noise = np.random.default_rng(seed)
    packets = np.frombuffer(bytearray(data), np.uint8).reshape(-1, 188)
    low, high = int(begin * len(packets)), int(end * len(packets))
    packets[low:high, 40:] = noise.integers(0, 256, (high - low, 148))
    return packets.tobytes()
