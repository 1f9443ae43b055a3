"""Pictures for trials, made here."""

import io
from pathlib import Path

from PIL import Image


def gray_jpeg(level: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG, all of one gray level (0 to 255)."""
    out = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(out, "JPEG", quality=95)
    return out.getvalue()


def gray_pictures(directory: Path, *levels: int) -> Path:
    """A directory with a picture for each level, in order."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        (directory / f"{number:03d}-gray.jpg").write_bytes(gray_jpeg(level))
    return directory
