"""How the database is reached: what the URL says is kept, and the defaults detect a vanished server soon."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict

from hydracore.db.pool import conninfo

URL = "postgresql://ada:secret@db.example:5433/hydra"

REQUIRED_OPTIONS = (
    r"-c default_transaction_isolation=read\ committed"
    " -c array_nulls=on -c standard_conforming_strings=on"
)


def test_a_connection_has_the_given_role_and_application_name() -> None:
    given = conninfo_to_dict(conninfo(URL, role="hydracore_app", application="hydracore-api"))

    assert (given["options"], given["application_name"]) == (
        f"{REQUIRED_OPTIONS} -c role=hydracore_app",
        "hydracore-api",
    )
    assert (given["host"], given["port"], given["user"], given["dbname"]) == ("db.example", "5433", "ada", "hydra")


def test_without_a_role_a_connection_sets_no_options() -> None:
    assert conninfo_to_dict(conninfo(URL, role="", application="x")).get("options", "") == ""


def test_options_of_the_url_are_kept_beside_the_role() -> None:
    given = conninfo_to_dict(conninfo(f"{URL}?options=-c%20jit%3Doff", role="app", application="x"))

    assert given["options"] == f"{REQUIRED_OPTIONS} -c jit=off -c role=app"


def test_the_default_timeouts_detect_a_vanished_database_server_within_half_a_minute() -> None:
    given = conninfo_to_dict(conninfo(URL, role="", application="x"))

    idle, interval, count = (int(str(given[f"keepalives_{name}"])) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30
    assert int(str(given["tcp_user_timeout"])) <= 30_000
    assert int(str(given["connect_timeout"])) <= 10


def test_timeouts_given_in_the_url_override_the_defaults() -> None:
    given = conninfo_to_dict(conninfo(f"{URL}?connect_timeout=60&keepalives_idle=600", role="", application="x"))

    assert (given["connect_timeout"], given["keepalives_idle"]) == ("60", "600")
