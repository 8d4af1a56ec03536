"""Score uploaded videos over HTTP: MODEL=folder uvicorn service:app

curl --data-binary @dog.mp4 "http://localhost:8000/score?text=a+dog+runs&text=a+cat+sits"
Installed: extra runtime; pip install fastapi uvicorn."""

import asyncio
import os
import tempfile
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request

import stan_infer as si
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec

MAX_BYTES = int(os.environ.get("MAX_BYTES", 256 * 2**20))  # of one upload


@asynccontextmanager
async def life(app: FastAPI):
    """The model is opened once; a process of its own decodes, which a bad file may crash."""
    session = si.open_session(os.environ.get("MODEL", "MODEL"))
    with session as app.state.session, DecodeWorker() as app.state.reader:
        yield


app, turn = FastAPI(lifespan=life), asyncio.Lock()


@app.post("/score")
async def score(request: Request, text: Annotated[list[str], Query(max_length=64)]):
    """The body is the video; returns a score for each text."""
    if request.headers.get("content-type", "").startswith("multipart/"):  # a form, curl -F
        raise HTTPException(415, "send the video itself as the body: curl --data-binary @FILE")
    state, spec = app.state, ClipSpec.of(app.state.session.config)
    with tempfile.NamedTemporaryFile(buffering=0, suffix=".video") as file:  # removed at the end
        async for part in request.stream():
            if file.tell() + len(part) > MAX_BYTES:
                raise HTTPException(413, f"the video has more than {MAX_BYTES} bytes")
            file.write(part)
        try:
            async with turn:  # one clip at a time; the loop answers others meanwhile
                clip = await asyncio.to_thread(state.reader.read, file.name, spec)
                found = await asyncio.to_thread(state.session.score, text, clip.pixels[None])
        except si.InputError as error:
            raise HTTPException(400, str(error).replace(file.name, "the video")) from error
    return dict(zip(text, found[:, 0].tolist(), strict=True))
