"""Strict CBOR: the only way bytes from a guest, a peer or a broker become values."""

import io
from typing import Any, NoReturn

import cbor2

MAX_DEPTH = 16

_BUILT_IN_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
"""Tags that cbor2 would turn into dates, regular expressions, mail messages, shared references …"""


_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def _refuse_tag(_value: object, _immutable: object) -> NoReturn:
    raise ValueError("tags are not accepted")


_REFUSED = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def decode_strict(data: bytes | memoryview) -> Any:
    """The one item that ``data`` holds, of maps, lists, text, bytes, integers, floats, booleans and None.

    Refuses, with ValueError: depth over MAX_DEPTH, duplicate keys, keys that are neither text nor bytes,
    indefinite lengths, tags, undefined and simple values, and bytes that trail the item. The caller bounds
    ``len(data)``.
    """
    stream = io.BytesIO(data)
    decoder = cbor2.CBORDecoder(
        stream,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
        semantic_decoders=_REFUSED,
        tag_hook=_refuse_tag,
    )
    try:
        value = decoder.decode()
    except cbor2.CBORDecodeError as error:
        raise ValueError(f"{error}{f': {error.__cause__}' if error.__cause__ else ''}") from error
    if stream.tell() != len(data):
        raise ValueError(f"{len(data) - stream.tell()} bytes trail the item")
    _check_plain(value)
    return value


def _check_plain(value: object) -> None:
    """Refuse what JSON and msgspec have no word for (recursion is bounded by MAX_DEPTH)."""
    kind = type(value)
    if kind is dict:
        for item in value.values():  # type: ignore[attr-defined]  # narrowed by hand: isinstance costs three times that
            _check_plain(item)
    elif kind is list:
        for item in value:  # type: ignore[attr-defined]
            _check_plain(item)
    elif kind not in _PLAIN:
        raise ValueError(f"values of type {kind.__name__} are not accepted")
