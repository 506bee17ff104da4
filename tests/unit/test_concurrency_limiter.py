"""Work in progress is limited per instance, and no count is kept for idle instances."""

from __future__ import annotations

from uuid import UUID

import pytest

from hydracore.api.concurrency_limiter import ConcurrencyLimiter
from hydracore.api.errors import AgentBusy

ADA = UUID(int=1)


def test_work_over_the_limit_is_refused_and_no_count_is_kept_for_an_idle_instance() -> None:
    chats = ConcurrencyLimiter("chats")

    with chats.slot(ADA, limit=2), chats.slot(ADA, limit=2):
        with pytest.raises(AgentBusy), chats.slot(ADA, limit=2):
            pass
        held = len(chats._counts)

    assert (held, len(chats._counts)) == (1, 0)
