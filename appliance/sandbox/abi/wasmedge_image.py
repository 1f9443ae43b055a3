"""WasmEdge's pictures: a JPEG or PNG in the guest's memory becomes width x height pixels there. The host decodes it.

Bytes that are the current frame's need not be sent anywhere: they lie in the ring already.
"""

from collections.abc import Iterable
from functools import partial

from appliance.inference.messages import PIXEL_BYTES, Crop
from appliance.sandbox.abi.guest import Guest, Method
from appliance.sandbox.abi.tensors import invalid
from appliance.sandbox.engine import HostFunction

MODULE = "wasmedge_image"
LAYOUTS = {"rgb8": "rgb", "bgr8": "bgr", "rgb32f": "rgb32f", "bgr32f": "bgr32f"}
"""Names in 0.2 -> the pixels' format; in 0.3 their order is the number."""
FORMATS = tuple(LAYOUTS.values())
CODECS = {"jpg": b"\xff\xd8", "png": b"\x89PNG\r\n\x1a\n"}
"""How files of them begin."""
DONE, FAILED = 0, 1


class WasmedgeImage:
    """The host functions of the module ``wasmedge_image``; each returns 0, or 1 where it failed."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._services = guest.services

    def functions(self) -> Iterable[HostFunction]:
        methods: dict[str, Method] = {
            f"wasmedge_image_load_{codec}_to_{layout}": partial(self._load_exactly, start, format)
            for codec, start in CODECS.items()
            for layout, format in LAYOUTS.items()
        }
        methods |= dict.fromkeys(("load_jpg", "load_png", "load_image"), self._load_image)
        return self._guest.provide(MODULE, methods, lambda _: FAILED)

    def _load_exactly(self, start: bytes, format: str, *arguments: int) -> int:
        """0.2: each codec has its own functions, and they take no other's files."""
        picture, length, width, height, destination = arguments
        if self._guest.view(picture, length)[: len(start)] != start:
            raise invalid("not a picture of this codec")
        return self._load(picture, length, width, height, format, destination)

    def _load_image(self, *arguments: int) -> int:
        """0.3: whichever of the functions it is, the file says what it is."""
        picture, length, width, height, number, destination, room = arguments
        if number >= len(FORMATS) or width * height * PIXEL_BYTES[FORMATS[number]] > room:
            raise invalid("an unknown layout, or a buffer that is too small")
        self._guest.view(destination, room)
        return self._load(picture, length, width, height, FORMATS[number], destination)

    def _load(self, picture: int, length: int, width: int, height: int, format: str, destination: int) -> int:
        data = self._guest.view(picture, length)
        self._guest.view(destination, width * height * PIXEL_BYTES[format])
        if not any(data[: len(start)] == start for start in CODECS.values()):
            raise invalid("neither a JPEG nor a PNG")
        brought = None if self._is_the_frame(data) else data
        self._guest.write(destination, self._services.pixels(Crop(), format, width, height, brought))
        return DONE

    def _is_the_frame(self, data: memoryview) -> bool:
        frame = self._services.job().frame
        return frame.format == "jpeg" and frame.length == len(data) and bytes(data).startswith(self._services.payload())
