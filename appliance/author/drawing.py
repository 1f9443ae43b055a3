"""A handler's results, drawn on the picture they are about."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from appliance.text import printable

QUALITY = 90
MAX_BOXES = 100
MAX_LINES = 12
MAX_LETTERS = 80
_COLOURS = ("#00c853", "#ff6d00", "#2979ff", "#d500f9", "#ffd600", "#00e5ff")
_BACK = (0, 0, 0, 170)

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is drawn for a part of a value: text, and where it has one, a box."""

    text: str
    box: Rectangle | None = None


def marks(value: Any) -> list[Mark]:
    """What to draw of a value: objects with their boxes, a label with its score, anything else as text."""
    found = list(_marks(value))
    boxes = [mark for mark in found if mark.box][:MAX_BOXES]
    return [*boxes, *[mark for mark in found if not mark.box][:MAX_LINES]]


def _marks(value: Any) -> Iterator[Mark]:
    if not isinstance(value, Mapping):
        yield Mark(_short(value))
        return
    box = _box(value.get("box"))
    label = _label(value)
    if label or box:
        yield Mark(label, box)
    for key, item in value.items():
        if key == "box" or (label and key in ("label", "score")):
            continue
        if isinstance(item, list) and item and all(isinstance(each, Mapping) and _label(each) for each in item):
            yield from (Mark(_label(each), _box(each.get("box"))) for each in item)
        else:
            yield Mark(f"{key}: {_short(item)}")


def _label(value: Mapping[str, Any]) -> str:
    """``label`` with its ``score``; empty where there is none."""
    label = value.get("label")
    if label is None:
        return ""
    return f"{_short(label)} {_short(value['score'])}" if "score" in value else _short(label)


def _box(value: Any) -> Rectangle | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(isinstance(side, int | float) and math.isfinite(side) for side in value):
        return None
    left, top, right, bottom = value
    return (left, top, right, bottom) if left <= right and top <= bottom else None


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())[:MAX_LETTERS]
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"[:MAX_LETTERS]
    return printable(str(value))[:MAX_LETTERS]


def annotated(jpeg: bytes, drawn: Sequence[Mark]) -> bytes:
    """The picture as JPEG with the marks on it: boxes where they are, other text at the top left.

    ValueError where it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError) as error:  # what Pillow raises about damaged files
        raise ValueError(f"the picture cannot be decoded: {error}") from error
    draw = ImageDraw.Draw(image, "RGBA")
    size = max(12, min(image.size) // 32)
    font = ImageFont.load_default(size)
    for index, (text, box) in enumerate((mark.text, mark.box) for mark in drawn if mark.box):
        colour = _COLOURS[index % len(_COLOURS)]
        left, top, right, bottom = _inside(box, image.size)
        draw.rectangle((left, top, right, bottom), outline=colour, width=max(2, size // 8))
        _write(draw, font, (left, max(0, top - size * 1.25)), text, colour)
    height = 0.0
    for mark in drawn:
        if not mark.box:
            _write(draw, font, (0, height), mark.text, None)
            height += size * 1.25
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _inside(box: Rectangle, size: tuple[int, int]) -> Rectangle:
    """As far as the picture goes: what is drawn far outside of it takes long."""
    left, top, right, bottom = box
    wide, high = size
    return (
        min(max(left, 0), wide - 1),
        min(max(top, 0), high - 1),
        min(max(right, 0), wide - 1),
        min(max(bottom, 0), high - 1),
    )


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    at: tuple[float, float],
    text: str,
    colour: str | None,
) -> None:
    if text:
        draw.rectangle(draw.textbbox(at, text, font=font), fill=_BACK, outline=colour)
        draw.text(at, text, fill="white", font=font)
