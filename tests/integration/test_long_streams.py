"""A stream is loaded a page at a time, and what comes of it does not depend on where the pages end."""

from __future__ import annotations

import pytest

from events import loading
from tests import lives
from tests.requests_to_log import open_store, origin

ADA = lives.instance_id()
WHOLE = lives.Life.after(*lives.DELETED).state


@pytest.mark.parametrize("page", [1, 3, WHOLE.version, WHOLE.version + 1])
async def test_a_long_life_is_loaded_page_by_page(
    database_url: str, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(loading, "STREAM_PAGE", page)
    async with open_store(database_url) as (writer, _), open_store(database_url) as (reader, _):
        asked, *rest = lives.DELETED
        await writer.execute(ADA, asked, origin())
        begun = await reader.load(ADA)
        for command in rest:
            await writer.execute(ADA, command, origin())

        assert begun is not None
        assert begun.version == 1
        assert await reader.load(ADA) == WHOLE, "from what was remembered"
    async with open_store(database_url) as (fresh, _):
        assert await fresh.load(ADA) == WHOLE, "from the beginning"
