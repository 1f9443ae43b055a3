"""What a guest prints or returns, as a frame: for conventions that know nothing of tags and formats."""

import json
from collections.abc import Sequence

from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import Errno
from appliance.sandbox.services import RefusalError, Services


def emit_text(services: Services, text: bytes) -> None:
    """Emit a text with the handler's first tag: as it is where it is one JSON document, else as ``{"text": …}``.

    Nothing is emitted of an empty one. Raises GuestFailedError ``output``.
    """
    text = text.rstrip(b"\r\n")
    if not text:
        return
    wrapped = json.dumps({"text": text.decode("utf-8", "replace")}, ensure_ascii=False)
    _emit(services, _tag(services), [("json", text), ("json", wrapped.encode())])


def emit_bytes(services: Services, data: bytes) -> None:
    """Likewise bytes: format ``json`` where they are one document, else ``bytes``."""
    if data:
        _emit(services, _tag(services), [("json", data), ("bytes", data)])


def emit_tagged(services: Services, tag: int, data: bytes) -> None:
    """As :func:`emit_bytes`, with a tag of the guest's choice."""
    _emit(services, tag, [("json", data), ("bytes", data)])


def _tag(services: Services) -> int:
    if not services.setup.emits:
        raise GuestFailedError("output", "it has a result, but its manifest has no `emits`: name a tag for it there")
    return services.setup.emits[0]


def _emit(services: Services, tag: int, ways: Sequence[tuple[str, bytes]]) -> None:
    """The first of these ways that is well-formed."""
    for format, payload in ways:
        try:
            services.emit(tag, format, payload)
        except RefusalError as refusal:
            if refusal.code == Errno.EINVAL and (format, payload) != ways[-1]:
                continue  # it is no JSON
            raise GuestFailedError("output", f"its result cannot be emitted: {refusal}") from refusal
        return
