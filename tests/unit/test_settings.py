"""Settings come from the environment: defaults, bounds, all problems at once, and no secret shown."""

import base64
from pathlib import Path

import pytest

from hydracore.settings import (
    API_NEEDS,
    DATABASE_NEEDS,
    PACKAGED_CATALOGUE,
    RELAY_NEEDS,
    SECRET_FIELDS,
    TOKEN_NEEDS,
    WORKER_NEEDS,
    Settings,
    SettingsError,
    load,
    variable_name,
)

KEY = bytes(range(224, 256))

COMPLETE = {
    "HYDRACORE_DATABASE_URL": "postgresql://owner:pg-password@127.0.0.1/db",
    "HYDRACORE_REDIS_URL": "redis://:redis-password@127.0.0.1:6379/0",
    "HYDRACORE_MASTER_KEY": base64.urlsafe_b64encode(KEY).decode(),
    "HYDRACORE_JWT_SECRET": "a-secret-that-is-long-enough-to-sign-with",
    "HYDRACORE_PUBLIC_URL": "https://control.example/",
    "HYDRACORE_CLOUDSIM_TOKEN": "cloudsim-password",
    "HYDRACORE_MODEL_API_KEY": "model-password",
}


def problems_of(environ: dict[str, str], *, require: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(environ, require=require)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = load({})

    assert settings == Settings()
    assert (settings.api_host, settings.api_port, settings.log_level) == ("127.0.0.1", 8080, "info")
    assert (settings.installation, settings.database_role) == ("hydracore", "hydracore_app")
    assert (settings.heartbeat_interval_s, settings.heartbeat_late_s, settings.heartbeat_lost_s) == (15, 45, 90)
    assert settings.catalogue == PACKAGED_CATALOGUE


def test_values_are_converted_to_their_types() -> None:
    settings = load(
        COMPLETE | {"HYDRACORE_API_PORT": "9000", "HYDRACORE_BOOT_TIMEOUT_S": "2.5"}, require=API_NEEDS + WORKER_NEEDS
    )

    assert settings.master_key == KEY
    assert settings.public_url == "https://control.example"
    assert settings.api_port == 9000
    assert settings.boot_timeout_s == 2.5


@pytest.mark.parametrize("key", ["ssh-ed25519 AAAAC3Nz", "sk-ssh-ed25519@openssh.com AAAA+/== Ada Lövelace (laptop)"])
def test_an_ssh_public_key_is_accepted_with_or_without_a_comment(key: str) -> None:
    assert load({"HYDRACORE_SSH_PUBLIC_KEY": key}).ssh_public_key == key


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "fe80::1%eth0", "localhost", "api_1.internal.example"])
def test_the_api_host_may_be_an_ip_address_or_a_name(host: str) -> None:
    assert load({"HYDRACORE_API_HOST": host}).api_host == host


@pytest.mark.parametrize("url", ["http://[::1]:8080", "https://[fd00::1]", "http://[fe80::1%25eth0]:80"])
def test_a_url_may_have_an_ipv6_address_only_in_brackets(url: str) -> None:
    assert load({"HYDRACORE_PUBLIC_URL": url}).public_url == url
    assert "an IPv6 address in brackets" in problems_of({"HYDRACORE_PUBLIC_URL": url.translate({91: "", 93: ""})})[0]


def test_the_model_url_loses_its_final_slash_and_the_telegram_url_has_a_default() -> None:
    settings = load({"HYDRACORE_MODEL_BASE_URL": "https://models.example/v1/"})

    assert (settings.model_base_url, settings.model_api_key) == ("https://models.example/v1", "")
    assert settings.telegram_base_url == "https://api.telegram.org"


def test_cors_origins_are_split_at_commas_and_written_as_browsers_send_them() -> None:
    settings = load({"HYDRACORE_CORS_ORIGINS": "https://app.example/, HTTP://[::1]:8000 ,,http://localhost:3000"})

    assert settings.cors_origins == ("https://app.example", "http://[::1]:8000", "http://localhost:3000")
    assert load({"HYDRACORE_CORS_ORIGINS": "*"}).cors_origins == ("*",)
    assert load({}).cors_origins == ()


def test_the_rate_limit_is_6000_per_minute_by_default_and_may_be_0() -> None:
    assert load({}).rate_limit_per_minute == 6000
    assert load({"HYDRACORE_RATE_LIMIT_PER_MINUTE": "0"}).rate_limit_per_minute == 0


def test_a_master_key_is_accepted_without_its_base64_padding() -> None:
    assert load({"HYDRACORE_MASTER_KEY": base64.urlsafe_b64encode(KEY).decode().rstrip("=")}).master_key == KEY


@pytest.mark.parametrize("needs", [API_NEEDS, RELAY_NEEDS, WORKER_NEEDS, DATABASE_NEEDS, TOKEN_NEEDS])
def test_a_process_requires_its_own_settings_and_no_others(needs: tuple[str, ...]) -> None:
    given = {variable_name(name): COMPLETE[variable_name(name)] for name in needs}

    assert load(given, require=needs)
    problems = problems_of({}, require=needs)

    assert len(problems) == len(needs)
    assert all(f"{variable_name(name)} is missing: set it to" in "\n".join(problems) for name in needs)


def test_an_empty_value_counts_as_missing() -> None:
    assert problems_of({"HYDRACORE_DATABASE_URL": ""}, require=DATABASE_NEEDS)
    assert load({"HYDRACORE_API_PORT": ""}).api_port == 8080


def test_former_seal_keys_are_read_from_a_comma_separated_list() -> None:
    keys = ",".join(base64.urlsafe_b64encode(key).decode() for key in (KEY, bytes(32)))

    assert load({"HYDRACORE_SEAL_KEYS_FORMER": keys}).seal_keys_former == (KEY, bytes(32))
    assert "public keys" in problems_of({"HYDRACORE_SEAL_KEYS_FORMER": f"{keys},c2hvcnQ="})[0]


def test_former_master_keys_are_read_from_a_comma_separated_list_and_never_shown() -> None:
    keys = ",".join(base64.urlsafe_b64encode(key).decode() for key in (KEY, bytes(32)))

    settings = load({"HYDRACORE_MASTER_KEY": keys[:44], "HYDRACORE_MASTER_KEYS_FORMER": keys})
    (problem,) = problems_of({"HYDRACORE_MASTER_KEYS_FORMER": f"{keys},c2hvcnQ="})

    assert settings.master_keys_former == (KEY, bytes(32))
    assert list(settings.master_keys) == [KEY, bytes(32)]
    assert repr(KEY) not in f"{settings!r} {settings.master_keys!r}"
    assert problem.startswith("HYDRACORE_MASTER_KEYS_FORMER must be keys, each 32 random bytes")
    assert keys not in problem


def test_the_database_role_may_be_empty() -> None:
    assert load({"HYDRACORE_DATABASE_ROLE": ""}).database_role == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://somewhere"),
        ("DATABASE_URL", "postgresql://db.example/hydracore?sslmod=require"),
        ("DATABASE_URL", "postgresql://db.example/hydracore?connect_timeout=soon"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("REDIS_URL", "redis://redis.example?db=first"),
        ("REDIS_URL", "redis://redis.example?pasword=guess"),
        ("MASTER_KEY", "c2hvcnQ="),
        ("MASTER_KEY", "+/+/" * 11),
        ("MASTER_KEY", "ü" * 43),
        ("JWT_SECRET", "x" * 31),
        ("PUBLIC_URL", "control.example"),
        ("PUBLIC_URL", "http://:8080"),
        ("PUBLIC_URL", "http://fd00::1"),
        ("MODEL_BASE_URL", "api.openai.com/v1"),
        ("MODEL_BASE_URL", "https://api.openai.com/v1\n"),
        ("MODEL_API_KEY", "sk-abc\n"),
        ("MODEL_API_KEY", "sk-abc\r"),
        ("MODEL_API_KEY", "sk abc"),
        ("MODEL_API_KEY", "sk-äbc"),
        ("MODEL_API_KEY", "x" * 4097),
        ("TELEGRAM_BASE_URL", "ftp://telegram"),
        ("CATALOGUE", "/nowhere/catalogue.toml"),
        ("CATALOGUE", "/nowhere/catalogue.toml\n"),
        ("CATALOGUE", "x" * 256),
        ("SEAL_KEY", "c2hvcnQ="),
        ("SEAL_INTERVAL_S", "0"),
        ("INSTALLATION", "-dash-first"),
        ("INSTALLATION", "x" * 64),
        ("INSTALLATION", "prod\n"),
        ("DATABASE_ROLE", 'role"; DROP TABLE event'),
        ("DATABASE_ROLE", "hydracore_app\n"),
        ("CLOUDSIM_TOKEN", "token\n"),
        ("SSH_PUBLIC_KEY", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("SSH_PUBLIC_KEY", "ssh-ed25519 AAAAC3Nz ada@example.com\n"),
        ("SSH_PUBLIC_KEY", "ssh-ed25519 AAAAC3Nz\nssh-ed25519 AAAAC3Nz"),
        ("SSH_PUBLIC_KEY", "ssh-ed25519 AAAAC3Nz \x1b[2J"),
        ("API_HOST", "0.0.0.0\n"),
        ("API_HOST", "an address"),
        ("API_HOST", "[::1]"),
        ("API_HOST", "api..example"),
        ("API_PORT", "70000"),
        ("API_PORT", "http"),
        ("API_PORT_FOR_AGENTS", "0"),
        ("LOG_LEVEL", "loud"),
        ("BOOT_TIMEOUT_S", "0"),
        ("BOOT_TIMEOUT_S", "nan"),
        ("BOOT_TIMEOUT_S", "inf"),
        ("HEARTBEAT_INTERVAL_S", "3601"),
        ("PROVIDER_TIMEOUT_S", "10s"),
        ("WORKER_THREADS", "0"),
        ("WORKER_THREADS", "1.5"),
        ("BODY_MAX_BYTES", "1"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("RATE_LIMIT_PER_MINUTE", "many"),
        ("CORS_ORIGINS", "app.example"),
        ("CORS_ORIGINS", "https://app.example,https://other.example/path"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "null"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line_that_names_its_variable(name: str, value: str) -> None:
    (problem,) = problems_of(COMPLETE | {f"HYDRACORE_{name}": value}, require=API_NEEDS)

    assert problem.startswith(f"HYDRACORE_{name} must be ")
    assert "\n" not in problem


def test_all_problems_are_reported_at_once() -> None:
    environ = {"HYDRACORE_REDIS_URL": "nope", "HYDRACORE_API_PORT": "-1", "HYDRACORE_HEARTBEAT_LATE_S": "300"}

    problems = problems_of(environ, require=API_NEEDS)

    assert [problem.split()[0] for problem in problems] == [
        "HYDRACORE_DATABASE_URL",
        "HYDRACORE_REDIS_URL",
        "HYDRACORE_MASTER_KEY",
        "HYDRACORE_JWT_SECRET",
        "HYDRACORE_API_PORT",
        "HYDRACORE_HEARTBEAT_INTERVAL_S,",
    ]


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("http://control.example", True),
        ("http://10.0.0.5:8080", True),
        ("https://control.example", False),
        ("http://127.0.0.1:8080", False),
        ("http://localhost:8080", False),
        ("http://[::1]:8080", False),
    ],
)
def test_a_public_url_counts_as_unencrypted_without_https_unless_it_is_local(url: str, is_open: bool) -> None:  # noqa: FBT001 - a parameter
    assert load({"HYDRACORE_PUBLIC_URL": url}).is_public_url_unencrypted is is_open


def test_an_existing_catalogue_file_is_accepted(tmp_path: Path) -> None:
    catalogue = tmp_path / "mine.toml"
    catalogue.touch()

    assert load({"HYDRACORE_CATALOGUE": str(catalogue)}).catalogue == catalogue


def test_no_secret_is_shown_in_the_repr_or_in_a_reported_problem() -> None:
    shown = repr(load(COMPLETE))
    wrong = {variable_name(name): "not-a-good-value" for name in SECRET_FIELDS - {"cloudsim_token", "model_api_key"}}

    lines = "\n".join(problems_of(wrong))

    assert "password" not in shown
    assert COMPLETE["HYDRACORE_JWT_SECRET"] not in shown
    assert repr(KEY) not in shown
    assert "not-a-good-value" not in lines


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HYDRACORE_REDIS_URL", "redis://:redis/password@127.0.0.1:6379/0"),
        ("HYDRACORE_REDIS_URL", "redis://127.0.0.1:99999/0"),
        ("HYDRACORE_DATABASE_URL", "postgresql://owner:password%zz@127.0.0.1/db"),
        ("HYDRACORE_PUBLIC_URL", "https://control.example:port"),
        ("HYDRACORE_MODEL_BASE_URL", "http://[::1/v1"),
    ],
)
def test_a_url_that_cannot_be_parsed_is_reported_together_with_other_problems(name: str, value: str) -> None:
    problems = problems_of(COMPLETE | {name: value, "HYDRACORE_API_PORT": "x"}, require=API_NEEDS)

    assert {problem.partition(" ")[0] for problem in problems} == {name, "HYDRACORE_API_PORT"}
    assert "password" not in "".join(problems).replace("special characters in the password", "")
