"""The folder of an embedded stack: one supervisor's at a time, private, and refused with a reason where it cannot be one."""

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


def test_a_home_keeps_its_secrets_to_itself_and_for_good(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    secrets = home.secrets()

    home.save_api_key("hck_key")
    again = Home(tmp_path / "home").secrets()

    assert again.api_key == "hck_key"
    assert again.master_key == secrets.master_key
    assert again.database_password == secrets.database_password
    assert home.secrets_file.stat().st_mode & 0o777 == 0o600
    assert secrets.master_key not in repr(secrets)


def test_a_home_that_cannot_be_one_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HomeUnusable, match="as the home directory: Not a directory"):
        Home(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b'{"home_id"', b'{"home_id":"\xff"}', b"\0" * 64])
def test_secrets_that_are_damaged_are_told_of_and_ports_that_are_damaged_are_drawn_anew(
    tmp_path: Path, content: bytes
) -> None:
    home = Home(tmp_path / "home")
    for file in (home.secrets_file, home.ports_file):
        file.write_bytes(content)

    with pytest.raises(EmbeddedError, match="is damaged"):
        home.secrets()
    assert Ports(home.ports_file).claim("api")


def test_secrets_that_cannot_be_read_are_not_drawn_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.secrets_file.mkdir()

    with pytest.raises(HomeUnusable, match=r"secrets\.json: Is a directory"):
        home.secrets()
