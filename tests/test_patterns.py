"""Texts that become topics and file names are what their patterns say, to the last character."""

from typing import Any

import msgspec
import pytest

from appliance import config, manifest, wire
from appliance.deploy import bundle


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (config.Name, "box-7"),
        (wire.Name, "box-7"),
        (manifest.FileName, "handler.wasm"),
        (manifest.Version, "1.0.0"),
        (manifest.Version, "1.0.0-rc.1"),
        (manifest.ValuePath, "counts.cat"),
        (manifest.DeviceClass, "motion"),
        (bundle.Digest, "0f" * 32),
    ],
)
def test_a_line_break_at_the_end_is_not_overlooked(kind: Any, text: str) -> None:
    assert msgspec.convert(text, kind) == text
    for wrong in (f"{text}\n", f"\n{text}", f"{text}\n{text}"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, kind)
