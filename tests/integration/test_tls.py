"""The log over TLS, where libpq may have read more from the socket than it has handed out.

The embedded PostgreSQL has no TLS, so a proxy in front of it does the encryption, as for hosted databases.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from events.exchange import Statement, exchange
from tests import lifecycle
from tests.log_check import check_log
from tests.store_commands import create_instance, open_store, origin
from tests.waiting import until

ADDRESS = "127.0.0.1"
#: More than libpq's buffers, a TLS record and the kernel's buffers take at once.
LARGE_BYTES = 9_000_000


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for `ADDRESS`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "postgresql")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    names = folder / "server.crt", folder / "server.key"
    names[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    names[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return names


@asynccontextmanager
async def tls_proxy(database_url: str, certificate: Path, key: Path) -> AsyncGenerator[int]:
    """The port of a proxy that speaks TLS with clients and plain text with the server behind it."""
    there = conninfo_to_dict(database_url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["postgresql"])

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(str(there["host"]), int(str(there["port"])))
        await asyncio.gather(carry(reader, there_writer), carry(there_reader, writer))

    async with await asyncio.start_server(serve, ADDRESS, 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def encrypted_url(database_url: str, tmp_path: Path) -> AsyncGenerator[str]:
    certificate, key = await asyncio.to_thread(certificate_in, tmp_path)
    async with tls_proxy(database_url, certificate, key) as port:
        given = conninfo_to_dict(database_url)
        # Direct negotiation: the client does not ask first whether there is TLS, which the proxy would have to answer.
        yield (
            f"postgresql://{given['user']}:{given['password']}@{ADDRESS}:{port}/{given['dbname']}"
            f"?sslmode=verify-full&sslrootcert={certificate}&sslnegotiation=direct"
        )


async def recorded(owner_conn: AsyncConnection) -> int:
    ((count,),) = await (await owner_conn.execute("SELECT count(*) FROM command")).fetchall()
    return count


async def test_a_client_that_does_not_trust_the_certificate_refuses_to_connect(encrypted_url: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        await AsyncConnection.connect(encrypted_url, sslrootcert="system")


async def test_large_concurrent_exchanges_over_tls_get_their_own_answers(encrypted_url: str) -> None:
    words = [letter * LARGE_BYTES for letter in (b"a", b"b", b"c")]
    async with await AsyncConnection.connect(encrypted_url, autocommit=True) as connection:
        assert connection.pgconn.ssl_in_use

        answers = await asyncio.gather(
            *(exchange(connection, [Statement(b"SELECT $1::text, 1", (word,))], pipelined=True) for word in words)
        )

    assert answers == [[[(word, b"1")]] for word in words]


async def test_sessions_over_tls_that_are_killed_under_load_lose_and_double_no_append(
    encrypted_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(encrypted_url) as (store, _):

        async def write(customer_id: str) -> None:
            for number in range(10):
                stream_id = await create_instance(store, customer_id, f"k{number}")
                await store.execute(
                    stream_id, lifecycle.plan(hostname=f"{customer_id}-{number}", vpn_ip=None), origin()
                )

        async def has_grown_to(count: int) -> bool:
            return await recorded(owner_conn) >= count

        async with asyncio.TaskGroup() as writers:
            for number in range(6):
                writers.create_task(write(f"c{number}"))
            for count in (10, 40, 70, 100):
                await until(partial(has_grown_to, count))
                await owner_conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'test' AND datname = current_database()"
                )

    audit = await check_log(owner_conn)
    assert len(audit.versions) == len(audit.commands) / 2 == 60
