"""Pictures as another library reads them."""

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from appliance.sandbox.abi.pictures import MAKERS


@pytest.mark.parametrize(("format", "make"), MAKERS.items())
@settings(deadline=None)
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.binary(min_size=1, max_size=20))
def test_every_pixel_is_where_it_was(
    format: str, make: Callable[[bytes, int, int], bytes], size: tuple[int, int], seed: bytes
) -> None:
    width, height = size
    length = 3 * width * height
    rgb = (seed * length)[:length]
    with Image.open(io.BytesIO(make(rgb, width, height))) as image:
        image.load()
        assert (image.format, image.mode, image.size) == (format.upper(), "RGB", size)
        assert image.tobytes() == rgb
