"""What a camera needs to know of a JPEG before passing it on as it is."""

import simplejpeg

from appliance.camera.camera import MAX_PICTURE_SIDE


def size_of(jpeg: bytes) -> tuple[int, int] | None:
    """(width, height) by the header; None for one that should not be passed on.

    That is one that is damaged, too large, or that not every decoder takes: decoding it here shows which.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except (ValueError, KeyError):  # KeyError: a chroma subsampling that simplejpeg has no name for
        return None
    fits = 0 < width <= MAX_PICTURE_SIDE and 0 < height <= MAX_PICTURE_SIDE
    return (width, height) if fits and colours != "CMYK" else None
