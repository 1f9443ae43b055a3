"""What a handler may emit about one frame: tags, sizes, and documents that can be published.

Checked twice by the same code: in the worker, so that the guest learns of it, and in the zipper, which believes
no worker.
"""

import json
import math
from collections.abc import Collection, Iterable

from appliance.cbor import MAX_DEPTH, decode_strict
from appliance.frame import RESERVED_TAGS
from appliance.sandbox.messages import EMIT_FORMATS, MAX_DOCUMENT_BYTES, MAX_EMIT_BYTES, MAX_EMITS, Emit, Errno

DOCUMENTS = frozenset({"cbor", "json"})


class EmitError(ValueError):
    """The frame may not be emitted; ``code`` is what the native ABI returns for it."""

    def __init__(self, code: Errno, message: str) -> None:
        super().__init__(message)
        self.code = code


class Emits:
    """The frames emitted about one frame so far; :meth:`add` keeps every limit but does not read documents."""

    def __init__(self, tags: Collection[int]) -> None:
        self.frames: list[Emit] = []
        self._tags = tags
        self._document_bytes = 0

    def add(self, emit: Emit) -> None:
        """Take one more; EmitError where its tag or format is not allowed or a limit is passed."""
        length = len(emit.payload)
        if emit.tag in RESERVED_TAGS or emit.tag not in self._tags:
            raise EmitError(Errno.EDENIED, f"tag {emit.tag:#x} is not among the `emits` of the manifest")
        if emit.format not in EMIT_FORMATS:
            raise EmitError(Errno.EINVAL, f"frames of format {emit.format!r} cannot be emitted")
        if len(self.frames) >= MAX_EMITS:
            raise EmitError(Errno.ETOOBIG, f"more than {MAX_EMITS} frames")
        if length > MAX_EMIT_BYTES:
            raise EmitError(Errno.ETOOBIG, f"{length} bytes are over the limit of {MAX_EMIT_BYTES}")
        if emit.format in DOCUMENTS:
            if self._document_bytes + length > MAX_DOCUMENT_BYTES:
                raise EmitError(Errno.ETOOBIG, f"CBOR and JSON of over {MAX_DOCUMENT_BYTES} bytes about one frame")
            self._document_bytes += length
        self.frames.append(emit)


def check_documents(emits: Iterable[Emit]) -> None:
    """ValueError where a CBOR or JSON payload is not one well-formed value that can be published as JSON."""
    for emit in emits:
        if emit.format not in DOCUMENTS:
            continue
        try:
            value = decode_strict(emit.payload) if emit.format == "cbor" else _decode_json(emit.payload)
            _check_value(value, MAX_DEPTH)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the {emit.format} emitted with tag {emit.tag:#x} is malformed: {error}") from error


def _decode_json(payload: bytes) -> object:
    return json.loads(payload.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check_value(value: object, depth: int) -> None:
    """Nesting of at most ``depth``, finite numbers, and text that UTF-8 can hold."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
    elif isinstance(value, str):
        value.encode()  # half of a surrogate pair is a UnicodeEncodeError, a ValueError
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(item, depth - 1)
