"""A server's disk holds the files that user_data names, and nothing else."""

import json
from pathlib import Path

import pytest

from hydracore.cloudsim.disk import UserDataError, has_agent, write_disk


def cloud_config(*files: dict[str, str]) -> str:
    return "#cloud-config\n" + json.dumps({"write_files": files, "runcmd": [["true"]]})


def test_files_are_written_with_their_permissions(tmp_path: Path) -> None:
    root = tmp_path / "1"

    write_disk(
        root,
        cloud_config(
            {"path": "/etc/hydracore/agent.json", "content": "{}", "permissions": "0600"},
            {"path": "/etc/motd", "content": "hällo\n"},
        ),
    )

    assert (root / "etc/hydracore/agent.json").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/motd").read_text(encoding="utf-8") == "hällo\n"
    assert root.stat().st_mode & 0o777 == 0o700
    assert has_agent(root)


@pytest.mark.parametrize("text", ["", "#!/bin/sh\n", '{"write_files": []}', "#cloud-config\n{}"])
def test_user_data_without_cloud_config_files_makes_an_empty_disk(tmp_path: Path, text: str) -> None:
    write_disk(tmp_path / "1", text)

    assert list((tmp_path / "1").iterdir()) == []
    assert not has_agent(tmp_path / "1")


@pytest.mark.parametrize(
    "file",
    [
        {"path": "relative"},
        {"path": "/../out"},
        {"path": "/a/../../out"},
        {"path": "/nul\0"},
        {"path": "/a", "permissions": "rw"},
        {"path": "/"},
        {"path": "/" + "a" * 300},
    ],
)
def test_a_file_with_an_invalid_path_or_permissions_is_refused_without_quoting_its_content(
    tmp_path: Path, file: dict[str, str]
) -> None:
    with pytest.raises(UserDataError) as refused:
        write_disk(tmp_path / "disks" / "1", cloud_config({"content": "secret", **file}))

    assert "secret" not in str(refused.value)
    assert list(tmp_path.rglob("out")) == []
