"""A load generator over raw sockets: keep-alive connections that ask for one path again and again.

It runs as a separate process (`python -m bench.load ...`), outside the server's. It still shares the
machine's cores, which slows the faster server down more, so that measured ratios are too small.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import NamedTuple

from hydracore.signals import run_to_completion

#: The most bytes per read; a list of 100 rows has some 40 KB.
_READ_BYTES = 262_144
_OK = b"HTTP/1.1 200 "
_ACCEPTED = b"HTTP/1.1 202 "
_LENGTH = b"content-length: "


class Load(NamedTuple):
    """What to ask for. `token`: a bearer token."""

    host: str
    port: int
    paths: list[str]
    token: str
    connections: int
    seconds: float


async def measure(load: Load) -> dict[str, float]:
    """Requests per second, and the size of one answer's body in bytes. Raises `RuntimeError` for any answer but 200."""
    began_s = time.perf_counter()
    results = await asyncio.gather(*(_ask(load, n, began_s + load.seconds) for n in range(load.connections)))
    spent_s = time.perf_counter() - began_s
    return {"per_s": sum(count for count, _ in results) / spent_s, "body_bytes": results[0][1]}


async def _ask(load: Load, number: int, end_s: float) -> tuple[int, int]:
    reader, writer = await asyncio.open_connection(load.host, load.port, limit=_READ_BYTES)
    count, length = 0, 0
    try:
        while time.perf_counter() < end_s:
            path = load.paths[(number + count) % len(load.paths)]
            head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {load.token}\r\n\r\n"
            writer.write(head.encode())
            length = len(await _body(reader, _OK))
            count += 1
    finally:
        writer.close()
    return count, length


async def post(host: str, port: int, path: str, token: str, body: bytes) -> bytes:
    """The body of the answer, over a new connection. Raises `RuntimeError` for any answer but 202."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return await _body(reader, _ACCEPTED)
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(wanted):
        raise RuntimeError(head.split(b"\r\n", 1)[0].decode())
    lowered = head.lower()
    start = lowered.index(_LENGTH) + len(_LENGTH)
    return await reader.readexactly(int(lowered[start : lowered.index(b"\r\n", start)]))


if __name__ == "__main__":
    print(json.dumps(run_to_completion(measure(Load(**json.load(sys.stdin))))))
