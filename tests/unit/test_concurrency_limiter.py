"""Work in progress is limited per instance, and nothing is kept of instances without any."""

from __future__ import annotations

from uuid import UUID

import pytest

from hydracore.api.concurrency_limiter import ConcurrencyLimiter
from hydracore.api.errors import AgentBusy

ADA = UUID(int=1)


def test_nothing_is_kept_of_an_instance_for_which_nothing_is_under_way() -> None:
    chats = ConcurrencyLimiter("chats")

    with chats.slot(ADA, limit=2), chats.slot(ADA, limit=2):
        with pytest.raises(AgentBusy), chats.slot(ADA, limit=2):
            pass
        held = len(chats._counts)

    assert (held, len(chats._counts)) == (1, 0)
