"""Lists of instances: what they show, and pages that follow each other without gap or repeat."""

import psycopg
import pytest

from events import keys
from events.lifecycle import DELETED
from hydracore.api import listing
from hydracore.api.listing import Listing
from projections.queries import ListFilter
from tests.api_server import Api
from tests.instance_fixtures import module_api_fixture, shared_owner_conn_fixture, tenant_api_fixture
from tests.instance_requests import finish_deletion, listed_ids, request_instance
from tests.waiting import until

__all__ = ["module_api_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_deleted_instance_can_be_read_and_is_listed_only_on_request(api: Api) -> None:
    ann = api.token()
    kept, gone = await request_instance(api, ann), await request_instance(api, ann, idempotency_key="gone")
    await api.client.delete(f"/v1/instances/{gone}", headers=ann)
    assert set(await listed_ids(api, ann)) == {kept, gone}
    await finish_deletion(api, gone)

    assert await listed_ids(api, ann) == [kept]
    assert await listed_ids(api, ann, "?status=deleted") == [gone]
    assert set(await listed_ids(api, ann, "?include_deleted=true")) == {kept, gone}
    assert (await api.client.get(f"/v1/instances/{gone}", headers=ann)).json()["status"] == DELETED
    assert (await api.client.get("/v1/instances/by-key/gone", headers=ann)).json()["status"] == DELETED
    assert await request_instance(api, ann, idempotency_key="gone") == gone


async def test_a_list_shows_each_change_at_once(api: Api) -> None:
    ann = api.token()
    made = [await request_instance(api, ann) for _ in range(3)]

    for instance_id in made:
        await api.client.delete(f"/v1/instances/{instance_id}", headers=ann)
        answer = (await api.client.get("/v1/instances", headers=ann)).json()["instances"]

        shown = {item["id"]: item["status"] for item in answer}
        told = {each: (await api.client.get(f"/v1/instances/{each}", headers=ann)).json()["status"] for each in made}
        assert shown == told


async def test_the_email_address_of_an_erased_customer_is_no_longer_listed(
    api: Api, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", 0.5)
    ann = api.token(email='"customer_email":null@example.com')
    await request_instance(api, ann, agent_name='"customer_email":null')

    async def shown() -> tuple[str, str | None]:
        item = (await api.client.get("/v1/instances", headers=ann)).json()["instances"][0]
        return item["agent_name"], item["customer_email"]

    async def is_gone() -> bool:
        return await shown() == ('"customer_email":null', None)

    # The first time from the database, and then from the cache.
    before = [await shown() for _ in range(3)]
    await owner_conn.execute(
        "UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now() WHERE tenant_id = %s", (api.tenant,)
    )

    assert before == [('"customer_email":null', '"customer_email":null@example.com')] * 3
    await until(is_gone, seconds_max=20)


async def test_the_cache_of_lists_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CACHED_ITEMS_MAX", 3)
    monkeypatch.setattr(listing, "CACHED_PAGES_MAX", 2)
    lists = Listing(api.parts.queries, api.parts.keyring)
    sizes: list[tuple[int, int]] = []

    for number in range(6):
        customer = f"customer-{number}"
        made = await request_instance(api, api.token(user=customer))
        whose = ListFilter(tenant_id=api.tenant, customer_id=customer, limit=1)
        assert made.encode() in (await lists.page(whose)).json
        sizes.append((len(lists._cached_items), len(lists._pages)))

    # As many items as may be cached, and those of the page that was asked for last.
    assert max(count for count, _ in sizes) == 4
    assert max(pages for _, pages in sizes) == 2


async def test_pages_of_different_limits_are_cached_separately(api: Api) -> None:
    ann = api.token()
    for _ in range(3):
        await request_instance(api, ann)

    async def page(limit: int) -> tuple[int, bool]:
        answer = await api.client.get(f"/v1/instances?limit={limit}", headers=ann)
        return len(answer.json()["instances"]), "next" in answer.links

    assert [await page(limit) for limit in (3, 2, 3, 2)] == [(3, False), (2, True), (3, False), (2, True)]


async def test_pages_follow_each_other_through_links_without_gap_or_repeat(api: Api) -> None:
    ann = api.token()
    made = {await request_instance(api, ann) for _ in range(7)}

    seen: list[str] = []
    page = "/v1/instances?limit=3&include_deleted=true&status=pending"
    pages = 0
    while page:
        answer = await api.client.get(page, headers=ann)
        seen += [item["id"] for item in answer.json()["instances"]]
        page = answer.links["next"]["url"] if "next" in answer.links else ""
        pages += 1

    assert pages == 3
    assert len(seen) == 7
    assert set(seen) == made
    assert await listed_ids(api, ann) == seen


@pytest.mark.parametrize("query", ["", "status=pending", "status=deleted", "include_deleted=true"])
async def test_every_page_keeps_the_filter_of_the_first_request(api: Api, query: str) -> None:
    ann = api.token()
    for number in range(6):
        instance_id = await request_instance(api, ann)
        if number % 2:
            await api.client.delete(f"/v1/instances/{instance_id}", headers=ann)
            await finish_deletion(api, instance_id)
        await request_instance(api, api.token(user="bob"))

    whole = await listed_ids(api, ann, f"?{query}")

    assert len(whole) == (6 if query == "include_deleted=true" else 3)
    assert [await paged(api, ann, f"limit={limit}&{query}") for limit in (1, 2)] == [whole, whole]


async def paged(api: Api, who: dict[str, str], query: str) -> list[str]:
    """The ids on all pages, each found by the link of the one before."""
    seen: list[str] = []
    page = f"/v1/instances?{query}"
    while page:
        answer = await api.client.get(page, headers=who)
        seen += [item["id"] for item in answer.json()["instances"]]
        page = answer.links["next"]["url"] if "next" in answer.links else ""
    return seen


@pytest.mark.parametrize(
    ("query", "where", "kind"),
    [
        ("limit=0", "limit", "greater_than_equal"),
        ("limit=1001", "limit", "less_than_equal"),
        ("limit=x", "limit", "int_parsing"),
        ("status=gone", "status", "literal_error"),
        ("include_deleted=maybe", "include_deleted", "bool_parsing"),
        ("cursor=x", "cursor", "value_error"),
        ("cursor=" + "x" * 201, "cursor", "string_too_long"),
        ("cursor=MDAwMS0wMS0wMVQwMDowMDowMFovMTIz", "cursor", "value_error"),
    ],
)
async def test_bad_list_queries_are_refused(api: Api, query: str, where: str, kind: str) -> None:
    answer = await api.client.get(f"/v1/instances?{query}", headers=api.token())

    assert answer.status_code == 422
    assert [(problem["loc"], problem["type"]) for problem in answer.json()["detail"]] == [(["query", where], kind)]
