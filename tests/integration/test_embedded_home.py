"""The home of an embedded stack: used by one supervisor at a time, private, and refused with the reason if it is unusable."""

import os
import tempfile
from pathlib import Path

import pytest

from hydracore.embedded.errors import EmbeddedError, HomeInUse, HomeUnusable
from hydracore.embedded.home import Home
from hydracore.embedded.ports import Ports
from hydracore.embedded.temporary_home import temporary_home

#: The longest path that the system takes, with the zero byte at its end.
PATH_MAX = os.pathconf("/", "PC_PATH_MAX")


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


def test_a_temporary_home_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its folder can be made, and no path in it: that would be too long.
    deep = tmp_path
    while len(str(deep)) < PATH_MAX - 300:
        deep /= "d" * 250
    deep /= "d" * (PATH_MAX - len(str(deep)) - len("/hydracore-test-12345678") - 2)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    with pytest.raises(HomeUnusable, match="too long"), temporary_home("hydracore-test-"):
        pass

    assert list(deep.iterdir()) == []
