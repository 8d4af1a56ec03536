"""python -m examples.motion.picture: order.svg, two clips that differ only in the order of frames.

One clip and its reverse, with the scores that the trained demo gives them. The colours are legible
on white and on black, as the picture has no background.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLIP = HERE / "clips" / "green_square_moves_right.mp4"
TEXTS = ("a shape moves left", "a shape moves right")
_FRAME, _GAP, _ROW, _TEXT = 64, 6, 166, 225  # pixels
_GREY, _BLUE = "#768390", "#3b82d6"


def scored() -> tuple[Any, list[list[float]]]:
    """The clip, uint8 [T, H, W, 3], and the scores of it and of its reverse for TEXTS."""
    import numpy as np

    import stan_infer as si

    session = si.open_session(HERE / "motion.safetensors")
    clip = session.read_clip(CLIP)
    scores = np.asarray(session.score(list(TEXTS), np.stack([clip, clip[::-1]])))  # [Q, B]
    return clip, [[float(s) for s in column] for column in scores.T]


def draw(clip: Any, scores: list[list[float]]) -> str:
    """Return the SVG: a row for each order, with frames, scores and bars."""
    width = len(clip) * (_FRAME + _GAP) - _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{2 * _ROW - 12}" '
        f'viewBox="0 0 {width} {2 * _ROW - 12}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="18" fill="{_GREY}">',
        f"<title>{CLIP.stem} and its reverse, with the scores of {TEXTS[0]} and {TEXTS[1]}</title>",
        "<defs>",
        *(
            f'<image id="f{i}" width="{_FRAME}" height="{_FRAME}" href="{_address(frame)}"/>'
            for i, frame in enumerate(clip)
        ),
        "</defs>",
    ]
    for row, (name, order) in enumerate((("A clip", 1), ("The same frames in reverse", -1))):
        y = row * _ROW + 24
        parts.append(f'<text x="0" y="{y - 8}">{name}</text>')
        for place, i in enumerate(range(len(clip))[::order]):
            parts.append(f'<use href="#f{i}" x="{place * (_FRAME + _GAP)}" y="{y}"/>')
        best = max(scores[row])
        for line, (text, score) in enumerate(zip(TEXTS, scores[row], strict=True)):
            weight, colour = ("bold", _BLUE) if score == best else ("normal", _GREY)
            base = y + _FRAME + 24 + 24 * line
            long = max(score, 0) * (width - _TEXT - 50)
            parts += [
                f'<g font-weight="{weight}" fill="{colour}"><text x="0" y="{base}">{text}</text>',
                f'<rect x="{_TEXT}" y="{base - 14}" width="{long:.0f}" height="15" rx="2"/>',
                f'<text x="{_TEXT + 6 + long:.0f}" y="{base}">{score:.2f}</text></g>',
            ]
    return "\n".join([*parts, "</svg>", ""])


def _address(frame: Any) -> str:
    import cv2

    done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


if __name__ == "__main__":
    (HERE / "order.svg").write_text(draw(*scored()))
