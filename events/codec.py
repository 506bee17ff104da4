"""Encodes and decodes events. The stored payload is exactly these bytes, and the digests cover them."""

from __future__ import annotations

import msgspec

from events.types import AnyEvent, Event

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """The event as JSON, with its tag in `type`."""
    return _encoder.encode(event)


def decode(payload: bytes | str) -> AnyEvent:
    """The event in `payload`. Raises `msgspec.ValidationError` for a type or shape that was never written."""
    return _decoder.decode(payload)


def tag_of(event: Event | type[Event]) -> str:
    """The stored name of the event's type, such as `server_created`."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str), "every event type sets its tag"
    return tag
