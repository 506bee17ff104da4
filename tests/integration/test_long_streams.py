"""A stream is loaded a page at a time, and its state does not depend on where the pages end."""

from __future__ import annotations

import pytest

from events import loading
from tests import lifecycle
from tests.store_commands import open_store, origin

ADA = lifecycle.instance_id()
WHOLE = lifecycle.InMemoryInstance.after(*lifecycle.DELETED).state


@pytest.mark.parametrize("page", [1, 3, WHOLE.version, WHOLE.version + 1])
async def test_the_loaded_state_of_a_stream_does_not_depend_on_the_page_size(
    database_url: str, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(loading, "STREAM_PAGE", page)
    async with open_store(database_url) as (writer, _), open_store(database_url) as (reader, _):
        asked, *rest = lifecycle.DELETED
        await writer.execute(ADA, asked, origin())
        begun = await reader.load(ADA)
        for command in rest:
            await writer.execute(ADA, command, origin())

        assert begun is not None
        assert begun.version == 1
        assert await reader.load(ADA) == WHOLE, "from the cached state"
    async with open_store(database_url) as (fresh, _):
        assert await fresh.load(ADA) == WHOLE, "from the beginning"
