"""Sweeps a stack from the test's own process, and returns the findings."""

from tests.command import Ended, run_forked
from tests.stack import Stack
from workers.sweep import sweep

#: Graces that have passed before a second look, and that no test outlives.
SHORT_GRACE_S, LONG_GRACE_S = "1e-9", "3600"


async def sweep_findings(
    stack: Stack, server_id: str, *, grace_s: str = LONG_GRACE_S, **settings: str
) -> list[tuple[str, str]]:
    """Sweep once; the kinds and actions of what was found about this server."""
    async with stack.deps(orphan_grace_s=grace_s, **settings) as deps:
        swept = await sweep(deps, dry_run=False)
    return [
        (each.kind, each.action if each.code is None else f"{each.action}: {each.code}")
        for each in swept.findings
        if each.server_id == server_id
    ]


def backdate_first_miss(stack: Stack, server_id: str) -> bool:
    """Make the first look that missed a server older than the second may be; whether a look has missed it."""
    earlier = "UPDATE missing_server SET first_missed_at = now() - interval '10 s' WHERE server_id = %s RETURNING 1"
    return bool(stack.rows(earlier, server_id))


async def sweep_until_vanished(stack: Stack, server_id: str) -> None:
    """Sweep as often as it takes to call a server vanished that is missing."""
    assert await sweep_findings(stack, server_id) == [("vanished", "watched")], "seen once"
    assert await sweep_findings(stack, server_id) == [("vanished", "watched")], "seen twice at once"
    assert backdate_first_miss(stack, server_id)
    assert await sweep_findings(stack, server_id) == [("vanished", "reported")]


def run_sweep_command(environ: dict[str, str], *options: str) -> Ended:
    """`hydracore sweep`."""
    return run_forked("sweep", *options, env=environ)
