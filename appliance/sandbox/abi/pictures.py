"""RGB samples as files of the simplest picture formats. Pure.

``rgb`` is always ``width * height * 3`` bytes, row by row from the top, without padding.
"""

import struct
import zlib

_BMP_FILE = struct.Struct("<2sIHHI")
_BMP_INFO = struct.Struct("<IiiHHIIiiII")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT = b"\x08\x02\0\0\0"
"""Depth, colour type, and the only methods there are."""
FAST = 1
"""zlib's level: the file is read once, in this process's memory."""


def ppm(rgb: bytes, width: int, height: int) -> bytes:
    """Binary PPM (``P6``)."""
    return b"P6\n%d %d\n255\n" % (width, height) + rgb


def bmp(rgb: bytes, width: int, height: int) -> bytes:
    """Uncompressed 24-bit BMP, bottom row first, as every reader knows it."""
    bgr = bytearray(len(rgb))
    bgr[0::3], bgr[1::3], bgr[2::3] = rgb[2::3], rgb[1::3], rgb[0::3]
    padding = bytes(-3 * width % 4)
    rows = [bgr[start : start + 3 * width] + padding for start in range(0, len(bgr), 3 * width)]
    pixels = b"".join(reversed(rows))
    offset = _BMP_FILE.size + _BMP_INFO.size
    return (
        _BMP_FILE.pack(b"BM", offset + len(pixels), 0, 0, offset)
        + _BMP_INFO.pack(_BMP_INFO.size, width, height, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
        + pixels
    )


def png(rgb: bytes, width: int, height: int) -> bytes:
    """PNG without filters, compressed a little."""
    rows = b"".join(b"\0" + rgb[start : start + 3 * width] for start in range(0, len(rgb), 3 * width))
    header = struct.pack(">II", width, height) + _RGB_8_BIT
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, FAST)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


MAKERS = {"ppm": ppm, "bmp": bmp, "png": png}
"""By the ending of a file's name."""
