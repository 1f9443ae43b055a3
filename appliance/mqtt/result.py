"""A handler's frame becomes the payload of an MQTT message. ``docs/result.schema.json`` is its schema."""

import json
import time
from typing import Any, Literal, NoReturn

import cbor2
import msgspec

from appliance.cbor import MAX_DEPTH, decode_strict
from appliance.errors import HandlerError
from appliance.frame import Frame, Producer

PAYLOAD_VERSION = 1
MAX_VALUE_BYTES = 1 << 20
"""Of what a handler emitted; checked before anything is decoded."""
MAX_RESULT_BYTES = 2 << 20
"""Of a whole payload: a megabyte of bytes is 1.4 MB of base64."""
_NS = 1_000_000_000
_INTEGERS = range(-(1 << 64), 1 << 64)
"""What CBOR has without tags; JSON of larger numbers would only be read differently everywhere."""


def encode_result(frame: Frame, device: str, now_ns: int, format: Literal["json", "cbor"] = "json") -> bytes:
    """Payload version 1 of a derived frame; HandlerError says what is wrong with what was emitted.

    ``now_ns`` is the wall clock, nanoseconds since 1970: the end of the ``total`` in ``timing_us``.

    In JSON, byte strings become base64 text, and NaN and infinities null; in CBOR all stay what they are.
    """
    if frame.producer is None:
        raise HandlerError("the frame has no producer: only what a handler emitted is a result")
    if len(frame.payload) > MAX_VALUE_BYTES:
        raise HandlerError(f"a value of {len(frame.payload)} bytes is over the limit of {MAX_VALUE_BYTES}")
    document = _document(frame, frame.producer, device, now_ns)
    try:
        payload = msgspec.json.encode(document) if format == "json" else cbor2.dumps(document)
    except UnicodeEncodeError as error:
        raise HandlerError("the value has text that is not Unicode (a lone surrogate)") from error
    if len(payload) > MAX_RESULT_BYTES:
        raise HandlerError(f"a result of {len(payload)} bytes is over the limit of {MAX_RESULT_BYTES}")
    return payload


def _document(frame: Frame, producer: Producer, device: str, now_ns: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "v": PAYLOAD_VERSION,
        "device": device,
        "source": frame.source,
        "seq": frame.seq,
        "captured": rfc3339(frame.captured_ns),
        "captured_ns": frame.captured_ns,
        "tag": frame.tag,
        "handler": producer.handler,
        "version": producer.version,
        "models": [
            {"model": run.model, "digest": run.digest, "runtime": run.runtime, "device": run.device}
            for run in producer.models
        ],
        "value": _value(frame),
    }
    if frame.format not in ("cbor", "json"):
        document["format"] = frame.format
    meta = dict(frame.meta)
    if "truth" in meta:
        document["truth"] = meta.pop("truth")
    if meta:
        document["meta"] = meta
    document["timing_us"] = {**frame.spent, "total": max(0, now_ns - frame.captured_ns) // 1000}
    return document


def rfc3339(ns: int) -> str:
    """Nanoseconds since 1970 as text, e.g. ``2026-03-01T12:00:00.000000001Z``."""
    seconds, rest = divmod(ns, _NS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def _value(frame: Frame) -> Any:
    payload = bytes(frame.payload)
    if frame.format not in ("cbor", "json"):
        return payload
    try:
        value = decode_strict(payload) if frame.format == "cbor" else _decode_json(payload)
        _check(value)
    except ValueError as error:
        raise HandlerError(f"the value is not valid {frame.format.upper()}: {error}") from error
    return value


def _decode_json(payload: bytes) -> Any:
    """As strict as the CBOR decoder: UTF-8, no duplicate keys, no NaN."""
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("an object has a key twice")
    return unique


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check(value: object) -> None:
    """What both encodings can carry: text keys, integers of 64 bits, not too deep."""
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                if set(map(type, item)) - {str}:
                    raise ValueError("a map has a key that is not text")
                below.extend(item.values())
            elif type(item) is list:
                below.extend(item)
            elif type(item) is int and item not in _INTEGERS:
                raise ValueError("an integer is over 64 bits")
            else:
                continue
            if depth == MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = below
