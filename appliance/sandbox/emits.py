"""What a handler may emit about one frame: tags, sizes, and well-formed documents.

Checked twice by the same code: in the worker, so that the guest learns of it at once, and in the zipper, which
believes no worker.
"""

import json
from collections.abc import Collection
from typing import NoReturn

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
    """The frames emitted about one frame so far; :meth:`add` keeps every limit."""

    def __init__(self, tags: Collection[int]) -> None:
        self.frames: list[Emit] = []
        self._tags = tags
        self._document_bytes = 0

    def add(self, emit: Emit) -> None:
        """Take one more; EmitError where its tag, format or size is not allowed or its document is malformed."""
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
            _check_document(emit)
            self._document_bytes += length
        self.frames.append(emit)


def _check_document(emit: Emit) -> None:
    try:
        if emit.format == "cbor":
            decode_strict(emit.payload)
        else:
            value = json.loads(emit.payload.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
            _check_depth(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise EmitError(Errno.EINVAL, f"malformed {emit.format}: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key is there twice")
    return unique


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check_depth(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, depth - 1)
