"""WasmEdge's pictures, in both generations of its crate."""

import pytest
from nn_bench import EDGES, FAILED, JPEG, MEMORY, OUT, Host

from appliance.inference.messages import Crop
from appliance.sandbox.messages import MAX_PICTURE_BYTES, WantPixels

PNG = b"\x89PNG\r\n\x1a\n and so on"
OTHER = b"\xff\xd8 another picture than the frame's"
PICTURE = 0x100
RGB8, BGR8, RGB32F, BGR32F = range(4)
LAYOUTS = {"rgb8": ("rgb", 3), "bgr8": ("bgr", 3), "rgb32f": ("rgb32f", 12), "bgr32f": ("bgr32f", 12)}


class Images(Host):
    def old(
        self, codec: str, layout: str, picture: bytes, width: int = 2, height: int = 2, out: int = OUT
    ) -> int | None:
        name = f"wasmedge_image_load_{codec}_to_{layout}"
        return self.call("wasmedge_image", name, self.put(PICTURE, picture), len(picture), width, height, out)

    def new(
        self, name: str, picture: bytes, layout: int = RGB8, size: tuple[int, int] = (2, 2), room: int = 12
    ) -> int | None:
        at = self.put(PICTURE, picture)
        return self.call("wasmedge_image", name, at, len(picture), *size, layout, OUT, room)

    @property
    def asked(self) -> list[WantPixels]:
        return [asked for asked in self.zipper.asked if isinstance(asked, WantPixels)]


@pytest.fixture
def host() -> Images:
    return Images()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("codec", "picture"), [("jpg", OTHER), ("png", PNG)])
def test_old_functions(host: Images, codec: str, picture: bytes, layout: str) -> None:
    format, size = LAYOUTS[layout]
    host.put(OUT, b"\xee" * 100)
    assert host.old(codec, layout, picture, 3, 2) == 0
    assert host.asked == [WantPixels(Crop(), format, 3, 2, picture)]
    assert host.read(OUT, 6 * size + 1) == bytes(6 * size) + b"\xee"


@pytest.mark.parametrize("name", ["load_jpg", "load_png", "load_image"])
@pytest.mark.parametrize("picture", [OTHER, PNG])
@pytest.mark.parametrize("layout", range(4))
def test_new_functions(host: Images, name: str, picture: bytes, layout: int) -> None:
    format, size = list(LAYOUTS.values())[layout]
    assert host.new(name, picture, layout, (3, 2), 6 * size) == 0
    assert host.asked == [WantPixels(Crop(), format, 3, 2, picture)]


def test_the_frames_own_picture_is_not_sent(host: Images) -> None:
    assert host.old("jpg", "rgb8", JPEG) == 0
    assert host.new("load_jpg", JPEG) == 0
    assert host.asked == [WantPixels(Crop(), "rgb", 2, 2, None)] * 2
    host.next_frame(OTHER)
    assert host.old("jpg", "rgb8", JPEG) == 0
    assert host.asked[-1].data == JPEG
    host.next_frame(JPEG, "bytes")
    assert host.old("jpg", "rgb8", JPEG) == 0
    assert host.asked[-1].data == JPEG, "a frame that says it is no picture is not decoded as one"


def test_a_picture_one_byte_off_the_frames_is_another(host: Images) -> None:
    for picture in (JPEG[:-1], JPEG + b"\0", JPEG[:-1] + b"\0"):
        assert host.old("jpg", "rgb8", picture) == 0
        assert host.asked[-1].data == picture


def test_what_is_no_picture(host: Images) -> None:
    for picture in (b"", b"\xff", b"GIF89a", b"BM"):
        assert host.old("jpg", "rgb8", picture) == 1
        assert host.old("png", "rgb8", picture) == 1
        assert host.new("load_image", picture) == 1
    assert host.old("png", "rgb8", OTHER) == 1
    assert host.old("jpg", "rgb8", PNG) == 1
    assert host.asked == []


@pytest.mark.parametrize(
    ("width", "height"), [(0, 2), (2, 0), (0xFFFF_FFFF, 1), (0xFFFF_FFFF, 0xFFFF_FFFF), (40000, 1)]
)
def test_sizes_that_cannot_be(host: Images, width: int, height: int) -> None:
    assert host.old("jpg", "rgb8", OTHER, width, height) == 1
    assert host.new("load_jpg", OTHER, RGB8, (width, height), 0x100) == 1
    assert host.asked == []


def test_buffers_that_are_too_small(host: Images) -> None:
    assert host.new("load_jpg", OTHER, RGB8, room=11) == 1
    assert host.new("load_jpg", OTHER, RGB32F, room=47) == 1
    assert [host.new("load_jpg", OTHER, layout, room=48) for layout in (4, 0xFFFF_FFFF)] == [1, 1]
    assert host.new("load_jpg", OTHER, room=MEMORY) == 1, "it does not lie in the memory"
    assert host.asked == []


def test_what_cannot_be_decoded(host: Images) -> None:
    host.zipper.refuse = FAILED
    assert host.old("jpg", "rgb8", OTHER) == 1
    host.zipper.refuse = FAILED
    assert host.new("load_image", OTHER) == 1


def test_a_picture_over_the_limit() -> None:
    host = Images(memory=MAX_PICTURE_BYTES + (1 << 16))
    assert host.old("jpg", "rgb8", OTHER.ljust(MAX_PICTURE_BYTES, b"\0"), out=0) == 0
    assert host.old("jpg", "rgb8", OTHER.ljust(MAX_PICTURE_BYTES + 1, b"\0"), out=0) == 1


def test_pixels_over_the_limit() -> None:
    host = Images(memory=32 << 20)
    assert host.old("jpg", "rgb8", OTHER, 2048, 2048) == 0
    assert host.old("jpg", "rgb8", OTHER, 2048, 2049) == 1
    assert host.old("jpg", "rgb32f", OTHER, 1024, 1025) == 1


def test_before_there_is_a_frame() -> None:
    host = Images(frame=None)
    assert host.old("jpg", "rgb8", OTHER) == 1


@pytest.mark.parametrize("edge", EDGES)
def test_pointers_outside_the_memory(host: Images, edge: int) -> None:
    name = "wasmedge_image_load_jpg_to_rgb8"
    at = host.put(PICTURE, OTHER)
    assert host.call("wasmedge_image", name, edge, len(OTHER), 2, 2, OUT) == 1
    assert host.call("wasmedge_image", name, at, 0xFFFF_FFFF, 2, 2, OUT) == 1
    assert host.call("wasmedge_image", name, at, len(OTHER), 2, 2, edge) == 1
    assert host.call("wasmedge_image", "load_jpg", edge, len(OTHER), 2, 2, RGB8, OUT, 12) == 1
    assert host.call("wasmedge_image", "load_jpg", at, len(OTHER), 2, 2, RGB8, edge, 12) == 1
    assert host.asked == []
    assert host.old("jpg", "rgb8", OTHER, out=MEMORY - 12) == 0
