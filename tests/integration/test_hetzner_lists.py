"""Lists of the Hetzner driver contain every server that exists all along, whatever changes meanwhile, and endless lists end."""

import asyncio
import itertools
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from tests.cloudsim_fixtures import PUBLIC_KEY, TOKEN, CloudsimProcess
from tests.hetzner_calls import server_order, wait_until_running
from tests.waiting import PATIENCE_S, until
from workers.providers.base import Provider, ProviderError, ProviderRefused, ProviderRetry
from workers.providers.hetzner import HetznerProvider

#: More requests than any list may take here. After them the provider answers with errors, so that an endless read ends.
QUESTIONS_MAX: Final = 50

PAGE_SIZE: Final = 50
HERE: Final = {"installation": "hydracore"}

#: What a provider answers to the request for a page: the ids on it, and its pagination.
Pages = Callable[[int], tuple[list[int], dict[str, Any]]]


class Listing:
    """A provider that has only lists; `asked` are the pages that were requested."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self.asked: list[int] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await self._head(reader):
            page = int(re.findall(r"[?&]page=(\d+)", head)[0])
            self.asked.append(page)
            ids, pagination = self._pages(page)
            body = {"servers": [server(n) for n in ids], "ssh_keys": [], "meta": {"pagination": pagination}}
            content = msgspec.json.encode(body)
            status = "200 OK" if len(self.asked) <= QUESTIONS_MAX else "500 Enough"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        writer.close()
        await writer.wait_closed()

    async def _head(self, reader: asyncio.StreamReader) -> str:
        try:
            return (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return ""


@asynccontextmanager
async def listing(pages: Pages) -> AsyncGenerator[tuple[Listing, HetznerProvider]]:
    it = Listing(pages)
    async with (
        asyncio.TaskGroup() as answers,
        await asyncio.start_server(lambda *ends: answers.create_task(it.answer(*ends)), "127.0.0.1", 0) as server,
    ):
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        driver = HetznerProvider(
            endpoint, TOKEN, timeout_s=PATIENCE_S, ssh_public_key=PUBLIC_KEY, ssh_key_name="hydracore"
        )
        try:
            yield it, driver
        finally:
            await driver.aclose()


def server(number: int) -> dict[str, Any]:
    named = {"name": f"hc-{number}"}
    return {
        "id": number,
        "status": "running",
        "created": "2026-01-01T00:00:00Z",
        "labels": HERE,
        **named,
        "public_net": {"ipv4": None, "ipv6": None},
        "server_type": named,
        "location": named,
    }


def about(page: int, *, next_page: int | None, last_page: int, total: int | None = None) -> dict[str, Any]:
    return {
        "page": page,
        "next_page": next_page,
        "last_page": last_page,
        "total_entries": total or last_page * PAGE_SIZE,
    }


async def find(driver: Provider) -> object:
    return await driver.find_servers(HERE)


async def look_for_the_key(driver: Provider) -> object:
    return await driver.create_server(server_order())


READERS: Final = pytest.mark.parametrize("read", [find, look_for_the_key])


@READERS
@pytest.mark.parametrize(
    "pages",
    [
        lambda _: ([1], about(1, next_page=1, last_page=1)),
        lambda _: ([1], about(1, next_page=2, last_page=2)),
        lambda page: ([1], about(page, next_page=page, last_page=page)),
        lambda page: ([1], about(page, next_page=0, last_page=0)),
    ],
    ids=["the first page again", "always the first page", "the same page again", "a page before the first"],
)
async def test_an_endless_list_of_pages_counts_as_unreadable(read: Callable[[Provider], Any], pages: Pages) -> None:
    async with listing(pages) as (provider, driver):
        with pytest.raises(ProviderRetry) as unreadable:
            await read(driver)

    assert unreadable.value.code == "unreadable_answer"
    assert len(provider.asked) <= 2


async def test_a_list_of_servers_without_the_requested_labels_counts_as_unreadable() -> None:
    """Servers listed for an instance are deleted with it, so a lost label selector would cost other instances theirs."""
    async with listing(lambda page: ([1, 2], about(page, next_page=None, last_page=1))) as (_, driver):
        assert len(await driver.find_servers(HERE)) == 2
        with pytest.raises(ProviderRetry) as unreadable:
            await driver.find_servers({**HERE, "instance": "1"})

    assert unreadable.value.code == "unreadable_answer"


@READERS
async def test_a_list_with_more_pages_than_any_project_has_is_refused_after_its_first_page(
    read: Callable[[Provider], Any],
) -> None:
    async with listing(lambda page: ([1], about(page, next_page=page + 1, last_page=100_000))) as (provider, driver):
        with pytest.raises(ProviderError) as refused:
            await read(driver)

    assert type(refused.value) is ProviderRefused
    assert refused.value.code in {"too_many_servers", "too_many_ssh_keys"}
    assert provider.asked == [1]


@pytest.mark.parametrize("seed", range(20))
async def test_servers_that_exist_all_along_are_listed_whatever_is_added_or_removed_between_pages(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    ids = list(range(1, chance.randint(60, 260)))
    all_along, new = set(ids), itertools.count(1_000)

    def pages(page: int) -> tuple[list[int], dict[str, Any]]:
        last = -(-len(ids) // PAGE_SIZE)
        following = page + 1 if page < last else None
        found = ids[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        pagination = about(page, next_page=following, last_page=last, total=len(ids))
        for _ in range(chance.randint(0, 3)):
            all_along.discard(ids.pop(chance.randrange(len(ids))))
        ids.extend(next(new) for _ in range(chance.randint(0, 3)))
        return found, pagination

    async with listing(pages) as (_, driver):
        found = [int(each.id) for each in await driver.find_servers(HERE)]

    assert all_along - set(found) == set()
    assert found == sorted(set(found))


@pytest.mark.parametrize("page", [2, 3], ids=["the second page is read", "the third page is read"])
async def test_a_server_removed_while_another_is_added_hides_no_other_server(
    cloudsim: CloudsimProcess, driver: Provider, page: int
) -> None:
    servers = [(await driver.create_server(server_order(f"hc-{number:02d}"))).server for number in range(52)]
    await wait_until_running(driver, servers[-1].id)
    cloudsim.fault("list_servers", "hold_before", skip=page - 1)
    finding = asyncio.create_task(driver.find_servers(HERE))
    await until(lambda: cloudsim.held() or finding.done())

    cloudsim.call("POST", f"/_sim/servers/{servers[0].id}/vanish")
    await driver.create_server(server_order("hc-new"))
    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert {server.id for server in servers[1:]} <= {server.id for server in await finding}
