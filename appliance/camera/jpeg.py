"""What a camera needs to know of a JPEG before passing it on as it is."""

import simplejpeg

from appliance.camera.camera import check_size


def size_of(jpeg: bytes) -> tuple[int, int] | None:
    """(width, height), or None for one that not every decoder takes: it has to be decoded here.

    ValueError where it is damaged or larger than MAX_PICTURE_SIDE. Only the header is looked at.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except KeyError:  # a chroma subsampling that simplejpeg has no name for
        return None
    check_size(width, height)
    return None if colours == "CMYK" else (width, height)
