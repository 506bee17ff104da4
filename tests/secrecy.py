"""Searches the database and the output of processes for secrets that must not be readable there."""

import base64
import json
import re
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from psycopg import sql

from hydracore.tokens import agent_key, control_token, enrol_token

if TYPE_CHECKING:
    from tests.stack import Stack

#: Any of our tokens, whoever it belongs to: enrol token, agent key, control token, API key.
ANY_TOKEN = re.compile(r"hc[eactk]_[0-9a-f]{32}_[A-Za-z0-9_-]+")

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_INTENTS = "SELECT stream_id, payload FROM event WHERE type = 'server_intended'"
_ISSUES = "SELECT stream_id, payload FROM event WHERE type = 'agent_key_issued'"


def assert_no_secret_leaked(stack: "Stack", *more: str) -> None:
    """`more`: secrets of the test's own."""
    secrets = {*stack.secrets, *_derived(stack), *more}
    database, output = _database(stack), stack.output()
    # Where tests made no instance, nothing was made for agents either.
    assert ("server_intended" in database) == bool(stack.rows(_INTENTS)), "this is the place to look"
    assert "worker_started" in output
    for secret in secrets:
        for form in (secret, secret.encode().hex(), base64.b64encode(secret.encode()).decode()):
            assert form not in database, f"the database has {secret}"
            assert form not in output, f"a process has printed {secret}"
    for place in (database, output):
        assert not ANY_TOKEN.search(place), ANY_TOKEN.findall(place)


def assert_user_data_has_only_the_enrol_token(stack: "Stack", instance_id: UUID) -> None:
    """What the cloud can read of a server is where to call, who it is, and the enrol token."""
    with sqlite3.connect(stack.cloudsim.home / "cloudsim.sqlite") as memory:
        (text,) = memory.execute("SELECT user_data FROM server WHERE name = ?", (f"hc-{instance_id}",)).fetchone()
    memory.close()
    (file,) = json.loads(text.removeprefix("#cloud-config\n"))["write_files"]
    content = json.loads(file["content"])
    assert content.keys() == {"control_plane_url", "instance_id", "attempt", "enrol_token"}
    for secret in {*stack.secrets, *_derived(stack)} - {content["enrol_token"]}:
        assert secret not in text


def _derived(stack: "Stack") -> Iterator[str]:
    """What was made for agents."""
    for stream_id, intent in stack.rows(_INTENTS):
        yield enrol_token(stack.master_key, stream_id, intent["attempt"], intent["enrol_nonce"])
    for stream_id, issue in stack.rows(_ISSUES):
        yield agent_key(stack.master_key, stream_id, UUID(issue["key_id"]))
        yield control_token(stack.master_key, stream_id, UUID(issue["key_id"]))


def _database(stack: "Stack") -> str:
    """Every row of every table, as text."""
    found: list[str] = []
    for (table,) in stack.rows(_TABLES):
        dump = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
        found += [row[0] for row in stack.rows(dump)]
    return "\n".join(found)
