"""The transport between agent and control plane, without an answer."""

from __future__ import annotations

import pytest

from hydracore.transport import exchange, new_client
from tests.raw_endpoint import raw_endpoint
from tests.waiting import PATIENCE_S


@pytest.mark.parametrize(("client_s", "whole_s"), [(0.3, PATIENCE_S), (PATIENCE_S, 0.3)])
async def test_a_missing_answer_raises_a_timeout_error_whichever_time_limit_ends_the_wait(
    client_s: float, whole_s: float
) -> None:
    async with new_client(tls=False, timeout_s=client_s) as client, raw_endpoint(stays_open=True) as endpoint:
        request = client.build_request("GET", endpoint.base_url)

        with pytest.raises(TimeoutError):
            await exchange(client, request, timeout_s=whole_s, answer_bytes_max=10)
