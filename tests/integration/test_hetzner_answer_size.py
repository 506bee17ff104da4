"""Answers to the Hetzner driver that are larger than any of the provider's: they are read up to a limit, and never decompressed."""

import gzip
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest

from tests.cloudsim_fixtures import PUBLIC_KEY, TOKEN
from tests.raw_endpoint import raw_endpoint
from tests.waiting import PATIENCE_S
from workers.providers.base import ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner import HetznerProvider
from workers.providers.hetzner_http import ANSWER_BYTES_MAX, COSTLY_SHARE, HetznerHttp
from workers.providers.hetzner_wire import ONE_SERVER

HERE = {"installation": "hydracore"}


#: An answer to a list as well as to a deletion.
ANSWER = {
    "servers": [],
    "meta": {"pagination": {"page": 1, "next_page": None, "last_page": 1, "total_entries": 0}},
    "action": {"id": 1, "status": "running"},
}


def answer_of(size: int) -> bytes:
    """The answer, padded to this size."""
    bare = msgspec.json.encode({**ANSWER, "padding": ""})
    return bare.replace(b'"padding":""', b'"padding":"%s"' % (b" " * (size - len(bare))))


@asynccontextmanager
async def driver_of(body: bytes, *headers: str) -> AsyncGenerator[HetznerProvider]:
    head = "\r\n".join(["HTTP/1.1 200 OK", "Connection: close", f"Content-Length: {len(body)}", *headers, "", ""])
    async with raw_endpoint(head.encode(), body) as endpoint:
        driver = HetznerProvider(
            endpoint.base_url, TOKEN, timeout_s=PATIENCE_S, ssh_public_key=PUBLIC_KEY, ssh_key_name="hydracore"
        )
        try:
            yield driver
        finally:
            await driver.aclose()


async def test_an_answer_of_the_largest_size_is_read() -> None:
    async with driver_of(answer_of(ANSWER_BYTES_MAX)) as driver:
        assert await driver.find_servers(HERE) == []


async def test_an_answer_above_the_size_limit_counts_as_unreadable() -> None:
    async with driver_of(answer_of(ANSWER_BYTES_MAX + 1)) as driver:
        with pytest.raises(ProviderRetry) as unread:
            await driver.find_servers(HERE)

    assert unread.value.code == "unreadable_answer"


async def test_a_change_with_an_answer_above_the_size_limit_has_an_unknown_outcome() -> None:
    async with driver_of(answer_of(ANSWER_BYTES_MAX + 1)) as driver:
        with pytest.raises(ProviderOutcomeUnknown) as unread:
            await driver.delete_server("1")

    assert unread.value.code == "unreadable_answer"


async def test_an_unrequested_compressed_answer_is_not_decompressed() -> None:
    compressed = gzip.compress(answer_of(8 * ANSWER_BYTES_MAX))
    assert len(compressed) < ANSWER_BYTES_MAX / 50

    async with driver_of(compressed, "Content-Encoding: gzip") as driver:
        with pytest.raises(ProviderRetry) as unread:
            await driver.find_servers(HERE)

    assert unread.value.code == "unreadable_answer"


async def test_a_larger_answer_that_takes_long_is_no_silence_all_the_same() -> None:
    timeout_s = 2.0
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (ANSWER_BYTES_MAX + 1)
    async with (
        raw_endpoint(head, b" " * (ANSWER_BYTES_MAX + 1), pause_s=timeout_s * COSTLY_SHARE) as endpoint,
        aclosing(HetznerHttp(endpoint.base_url, TOKEN, timeout_s=timeout_s)) as http,
    ):
        with pytest.raises(ProviderRetry, match="unreadable_answer"):
            await http.get("servers/1", ONE_SERVER)

        http.refuse_if_silent()
