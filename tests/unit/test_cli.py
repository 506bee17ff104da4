"""The command line: what it refuses, in one clear line per problem, and the tokens that it signs."""

import os
import shlex
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from hydracore.cli import main
from hydracore.cli.development import DevFile, OtherTenant, User
from hydracore.cli.exit_status import NOT_DONE
from hydracore.cli.printing import operator
from hydracore.cli.running import failures
from hydracore.cli.up import introduction
from hydracore.db.error_text import one_line

SECRET = "a-secret-that-is-long-enough-to-sign-with"


def run(*words: str, **environ: str) -> Result:
    """Run the command with exactly these HYDRACORE_ settings."""
    empty = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "MASTER_KEY", "JWT_SECRET", "PUBLIC_URL", "CLOUDSIM_TOKEN"))
    env = {f"HYDRACORE_{name}": value for name, value in {**empty, **environ}.items()}
    return CliRunner().invoke(main, words, env=env)


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("api", ["DATABASE_URL", "REDIS_URL", "MASTER_KEY", "JWT_SECRET"]),
        ("relay", ["DATABASE_URL", "REDIS_URL"]),
        ("worker", ["DATABASE_URL", "REDIS_URL", "MASTER_KEY", "PUBLIC_URL"]),
        ("sweep", ["DATABASE_URL", "REDIS_URL", "MASTER_KEY", "PUBLIC_URL"]),
        ("db migrate", ["DATABASE_URL"]),
        ("api-key create --tenant acme", ["DATABASE_URL"]),
        ("api-key list --tenant acme", ["DATABASE_URL"]),
        ("api-key revoke 00000000-0000-0000-0000-000000000001", ["DATABASE_URL"]),
        ("token create --tenant acme --user ada --role admin", ["JWT_SECRET"]),
    ],
)
def test_missing_settings_are_reported_one_per_line_with_exit_status_2(command: str, missing: list[str]) -> None:
    result = run(*command.split())

    assert result.exit_code == 2
    assert [line.split()[1] for line in result.stderr.splitlines()] == [f"HYDRACORE_{name}" for name in missing]
    assert all(" is missing: set it to " in line for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    "command",
    [
        "fly",
        "up --prot 8080",
        "up --port 0",
        "up --home=",
        "up --home no-\udcff-text",
        "audit export --tenant acme --output -",
        "projections rebuild --all --distributed --full-speed",
        "projections rebuild --all --distributed --workers 2",
        "projections rebuild --all --dry-run --accept-drift",
        "fleet --every hour",
        "fleet --at 2026-11-01 --every hour",
        "up --port http",
        "up --workers 0",
        "api now",
        "token create --tenant acme --user ada --role god",
        "token create --tenant acme --user ada --role admin --days 0",
        "api-key create",
        "api-key create --tenant a/b",
        "api-key list --tenant a/b",
        "api-key revoke",
        "api-key revoke hck_1",
    ],
)
def test_an_invalid_command_line_is_a_usage_error_with_exit_status_2(command: str) -> None:
    result = run(*command.split())

    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_cloudsim_reports_all_its_invalid_options_and_settings_at_once() -> None:
    result = run("cloudsim", "--port", "http", "--boot", "fast", LOG_LEVEL="loud")

    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.partition(": ")[2] for line in sorted(result.stderr.splitlines())] == [
        "HYDRACORE_LOG_LEVEL must be one of debug, info, warning, error, not 'loud'",
        "Invalid value for '--boot': 'fast' is not one of 'process', 'inline'.",
        "Invalid value for '--port': 'http' is not a valid integer range.",
        "Missing option '--home'.",
        "Missing option '--token' (env var: 'HYDRACORE_CLOUDSIM_TOKEN').",
    ]


@pytest.mark.parametrize(
    "command", ["", "up", "demo", "db", "db migrate", "token", "token create", "cloudsim", "agent"]
)
def test_a_command_prints_its_usage_on_help(command: str) -> None:
    result = run(*command.split(), "--help")

    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_the_help_of_audit_show_gives_the_format_of_its_after_option() -> None:
    assert "--after LANE:NUMBER[@HEADS] " in run("audit", "show", "--help").stdout


def test_a_token_holds_the_given_user_tenant_role_and_email() -> None:
    words = ("--tenant", "acme", "--user", "ada", "--role", "customer", "--email", "ada@example.com", "--days", "2")
    result = run("token", "create", *words, JWT_SECRET=SECRET)

    claims = jwt.decode(result.stdout.strip(), SECRET, algorithms=["HS256"])

    assert {name: claims[name] for name in ("sub", "tenant", "role", "email")} == {
        "sub": "ada",
        "tenant": "acme",
        "role": "customer",
        "email": "ada@example.com",
    }


def test_a_token_for_an_invalid_tenant_id_is_refused_without_printing_the_secret() -> None:
    result = run("token", "create", "--tenant", "a b", "--user", "ada", "--role", "admin", JWT_SECRET=SECRET)

    assert result.exit_code == 2
    assert SECRET not in result.output


def test_an_unknown_projection_is_refused_with_the_list_of_projections() -> None:
    result = run("projections", "rebuild", "usage")

    assert result.exit_code == 2
    assert (
        "There is no projection 'usage'; the projections are activity, fleet, instance, provision_log, reservation, usage_daily."
        in " ".join(result.stderr.split())
    )


@pytest.mark.parametrize(
    "words",
    [
        "db migrate",
        "db backup nowhere",
        "api-key list --tenant acme",
        "projections list",
        "projections rebuild --all",
        "projections rollback fleet",
        "audit verify",
        "audit show --tenant acme",
        "fleet",
        "activity acme",
    ],
)
def test_an_unreachable_database_is_reported_in_one_line_without_its_password(words: str) -> None:
    result = run(*words.split(), DATABASE_URL="postgresql://owner:pg-password@127.0.0.1:1/db")

    assert result.exit_code == NOT_DONE
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.endswith(
        "Connection refused; Is the server running on that host and accepting TCP/IP connections?\n"
    )
    assert "pg-password" not in result.output


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection refused\n\tIs it running?\n", "connection refused; Is it running?"),
        (
            "All failures were:\n- host: a: refused\n- host: b: refused",
            "All failures were: - host: a: refused; - host: b: refused",
        ),
        ('no table "x"\nLINE 1: SELECT * FROM x\n                      ^', 'no table "x"'),
        ("ended by an operator\nLINE 21: ... FROM x\n    ^\nHINT:  Wait.", "ended by an operator; HINT: Wait."),
        ("It failed.\n\nHINT:  Try again.", "It failed. HINT: Try again."),
        ("", ""),
    ],
)
def test_an_error_text_of_several_lines_is_joined_into_one_readable_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_command_that_runs_out_of_memory_exits_as_not_done_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, failures():
        raise MemoryError

    assert (ended.value.code, capsys.readouterr().err) == (NOT_DONE, "hydracore: Not enough memory\n")


def test_an_operator_without_a_user_name_is_recorded_by_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a container, where /etc/passwd may have no entry for the user.
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert operator() == "operator:uid:54321"

    monkeypatch.setenv("USER", "ada")
    assert operator() == "operator:ada"


def test_commands_printed_by_up_can_be_pasted_into_a_shell_whatever_its_home_path() -> None:
    ada, eve = User("ada", "token-a"), User("eve", "token-e")
    file = DevFile(
        url="http://127.0.0.1:8080",
        tenant_id="acme",
        admin=eve,
        customer=ada,
        other_customer=eve,
        other_tenant=OtherTenant("rival", eve),
        api_key="key",
        database_url="-",
        redis_url="-",
        cloudsim_url="-",
        cloudsim_token="-",
        modelsim_url=None,
        pids={},
    )

    text = introduction(file, Path("/its own/$HOME"))

    line = next(line for line in text.splitlines() if "sweep --dry-run" in line)
    assert shlex.split(line.strip("( )").replace(";", " ; "))[3:5] == [".", "/its own/$HOME/env"]
