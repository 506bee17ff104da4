"""What is under way for each instance: so much of it at once, and nothing is kept of those for which nothing is."""

from __future__ import annotations

from uuid import UUID

import pytest

from hydracore.api.errors import AgentBusy
from hydracore.api.under_way import UnderWay

ADA = UUID(int=1)


def test_nothing_is_kept_of_an_instance_for_which_nothing_is_under_way() -> None:
    chats = UnderWay("chats")

    with chats.one_more(ADA, most=2), chats.one_more(ADA, most=2):
        with pytest.raises(AgentBusy), chats.one_more(ADA, most=2):
            pass
        held = len(chats._of_each)

    assert (held, len(chats._of_each)) == (1, 0)
