"""The home of an embedded stack: used by one supervisor at a time, private, and refused with the reason if it is unusable."""

import os
from pathlib import Path

import pytest

from hydracore.embedded.errors import EmbeddedError, HomeInUse, HomeUnusable
from hydracore.embedded.home import Home
from hydracore.embedded.ports import Ports


def test_two_supervisors_never_share_a_home(tmp_path: Path) -> None:
    home, same = Home(tmp_path / "home"), Home(tmp_path / "home")

    with (
        home.lock(),
        pytest.raises(HomeInUse, match=rf"in use by another `hydracore up` \(pid {os.getpid()}\)"),
        same.lock(),
    ):
        pass
    with same.lock():
        pass


def test_a_home_keeps_its_secrets_permanently_and_only_its_owner_can_read_them(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    secrets = home.secrets()

    home.save_api_key("hck_key")
    again = Home(tmp_path / "home").secrets()

    assert again.api_key == "hck_key"
    assert again.master_key == secrets.master_key
    assert again.database_password == secrets.database_password
    assert home.secrets_file.stat().st_mode & 0o777 == 0o600
    assert secrets.master_key not in repr(secrets)


def test_an_unusable_home_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HomeUnusable, match="as the home directory: Not a directory"):
        Home(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b'{"home_id"', b'{"home_id":"\xff"}', b"\0" * 64])
def test_damaged_secrets_are_an_error_and_damaged_ports_are_chosen_anew(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path / "home")
    for file in (home.secrets_file, home.ports_file):
        file.write_bytes(content)

    with pytest.raises(EmbeddedError, match="is damaged"):
        home.secrets()
    assert Ports(home.ports_file).claim("api")


def test_unreadable_secrets_are_an_error_and_are_not_replaced(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.secrets_file.mkdir()

    with pytest.raises(HomeUnusable, match=r"secrets\.json: Is a directory"):
        home.secrets()
