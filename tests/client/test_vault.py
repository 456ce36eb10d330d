"""The vault keeps secrets, notices changes, and leaves whole files only."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.vault import Vault
from shared.errors import SiteError

KEY = bytes(range(32))


@given(plain=st.binary(max_size=300), context=st.text(max_size=40))
def test_what_was_sealed_opens_with_the_same_context_only(plain: bytes, context: str) -> None:
    vault = Vault(KEY)
    sealed = vault.encrypt(plain, context)
    assert vault.decrypt(sealed, context) == plain
    with pytest.raises(SiteError):
        vault.decrypt(sealed, context + "x")


@given(data=st.data(), plain=st.binary(min_size=1, max_size=64))
def test_every_changed_bit_is_noticed(data: st.DataObject, plain: bytes) -> None:
    vault = Vault(KEY)
    sealed = bytearray(vault.encrypt(plain, "a"))
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[position // 8] ^= 1 << (position % 8)
    with pytest.raises(SiteError):
        vault.decrypt(bytes(sealed), "a")


@given(cut=st.integers(0, 40))
def test_a_truncated_file_is_refused(cut: int) -> None:
    vault = Vault(KEY)
    sealed = vault.encrypt(b"nine bytes", "a")
    with pytest.raises(SiteError):
        vault.decrypt(sealed[:cut], "a")


def test_another_key_opens_nothing_and_names_patients_otherwise() -> None:
    one, other = Vault(KEY), Vault(KEY[::-1])
    with pytest.raises(SiteError):
        other.decrypt(one.encrypt(b"x", "a"), "a")
    assert one.pseudonym("p1") != other.pseudonym("p1")


def test_two_seals_of_one_text_differ() -> None:
    vault = Vault(KEY)
    assert vault.encrypt(b"same", "a") != vault.encrypt(b"same", "a")


def test_pseudonyms_and_macs_are_stable_and_separate() -> None:
    vault = Vault(KEY)
    names = {vault.pseudonym("p"), vault.mac("ledger", b"p"), vault.mac("audit", b"p")}
    assert len(names) == 3
    assert vault.pseudonym("p") == Vault(KEY).pseudonym("p")
    assert vault.mac("ledger", b"p") == Vault(KEY).mac("ledger", b"p")


def test_the_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "home" / "vault.key"
    first = Vault.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Vault.open(path).decrypt(first.encrypt(b"x", "a"), "a") == b"x"
    assert [p.name for p in path.parent.iterdir()] == ["vault.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_key_file_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "vault.key"
    Vault.open(path)
    path.chmod(mode)
    with pytest.raises(SiteError, match="chmod 600"):
        Vault.open(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_key_file_of_wrong_length_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vault.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SiteError, match="32 bytes"):
        Vault.open(path)
    assert path.read_bytes() == content


def test_processes_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from client.vault import Vault;"
        "print(Vault.open(Path(sys.argv[1])).pseudonym('p'))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "vault.key")], stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in started}) == 1


def test_files_are_sealed_owner_only_and_replaced_whole(tmp_path: Path) -> None:
    vault, path = Vault(KEY), tmp_path / "deep" / "file"
    vault.write(path, b"first secret", "file")
    vault.write(path, b"second secret", "file")
    assert vault.read(path, "file") == b"second secret"
    assert b"secret" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    vault, path = Vault(KEY), tmp_path / "file"
    vault.write(path, b"old", "file")
    code = (
        "import resource, signal, sys; from pathlib import Path; from client.vault import Vault;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "Vault(bytes(range(32))).write(Path(sys.argv[1]), bytes(100_000), 'file')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "SiteError" in result.stderr
    assert "disk space" in result.stderr
    assert vault.read(path, "file") == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_a_site_error(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot read"):
        Vault(KEY).read(tmp_path / "none", "file")
