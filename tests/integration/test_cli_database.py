"""Commands that work on the database."""

from click.testing import CliRunner

from hydracore.cli import main


def test_migrating_twice_applies_nothing_twice(database_url: str) -> None:
    result = CliRunner().invoke(main, ["db", "migrate"], env={"HYDRACORE_DATABASE_URL": database_url})

    assert (result.exit_code, result.stdout) == (0, "nothing to apply\n")


def test_an_api_key_is_printed_once(database_url: str) -> None:
    result = CliRunner().invoke(
        main, ["api-key", "create", "--tenant", "acme"], env={"HYDRACORE_DATABASE_URL": database_url}
    )

    assert result.exit_code == 0
    assert result.stdout.startswith("hck_")
