"""A server's home and its invitation fit its certificate, or are not made."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.home import ServerHome
from server.invite import invitation
from shared.errors import CoordinatorError


def test_an_invitation_is_for_an_address_of_the_certificate(tmp_path: Path) -> None:
    hosts = ["fl.example.org", "10.1.2.3"]
    home = ServerHome.create(tmp_path / "s", "0.0.0.0:9092", 8000, hosts)
    for address in ("fl.example.org:9092", "FL.example.org:443", "10.1.2.3:9092"):
        assert invitation(home, address).server == address
    with pytest.raises(CoordinatorError, match=r"it is for fl\.example\.org, 10\.1\.2\.3"):
        invitation(home, "fl.exmaple.org:9092")
    with pytest.raises(CoordinatorError, match="not for this address"):
        invitation(home)  # 0.0.0.0 is nowhere to connect to


@pytest.mark.parametrize(
    ("fleet", "hosts"),
    [("nowhere", ["a"]), ("0.0.0.0:9092", ["https://a"]), ("0.0.0.0:9092", ["a:9092"])],
)
def test_an_error_leaves_no_half_made_server(tmp_path: Path, fleet: str, hosts: list[str]) -> None:
    with pytest.raises(CoordinatorError):
        ServerHome.create(tmp_path / "s", fleet, 8000, hosts)
    assert not (tmp_path / "s").exists()


def test_a_server_is_not_overwritten(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path, "0.0.0.0:9092", 8000, ["a"])
    key = (home.path / "ca.key").read_bytes()
    with pytest.raises(CoordinatorError, match="exists already"):
        ServerHome.create(tmp_path, "0.0.0.0:9092", 8000, ["a"])
    assert (home.path / "ca.key").read_bytes() == key
