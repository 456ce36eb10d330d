"""The server's key and its memory of ledger heads survive restarts and never go back."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.countersign import Countersigner, HeadBook, Known
from shared.errors import CoordinatorError, SiteError
from shared.heads import verify_head
from shared.protocol import LedgerHead

STUDY, OTHER = "1" * 64, "2" * 64


def head(entries: int, digit: str = "a") -> LedgerHead:
    return LedgerHead(entries=entries, hash=digit * 64)


def book(home: Path) -> HeadBook:
    return HeadBook(home / "heads.json", Countersigner.open(home))


def test_a_signature_holds_for_its_site_head_and_studies_only(tmp_path: Path) -> None:
    signer = Countersigner.open(tmp_path)
    key, both = signer.public_key, (STUDY, OTHER)
    signature = signer.sign("Ashford", Known(head=head(3), studies=both))
    assert verify_head(key, "Ashford", head(3), both, signature)
    assert not verify_head(key, "Brook", head(3), both, signature)
    assert not verify_head(key, "Ashford", head(4), both, signature)
    assert not verify_head(key, "Ashford", head(3, "b"), both, signature)
    for studies in ((), (STUDY,), (OTHER, STUDY)):
        assert not verify_head(key, "Ashford", head(3), studies, signature)
    other = Countersigner.open(tmp_path / "other").public_key
    assert not verify_head(other, "Ashford", head(3), both, signature)


@pytest.mark.parametrize("signature", ["", "!!!", "AAAA", "é"])
def test_what_is_no_signature_does_not_hold(tmp_path: Path, signature: str) -> None:
    key = Countersigner.open(tmp_path).public_key
    assert not verify_head(key, "Ashford", head(3), (), signature)


def test_another_kind_of_public_key_is_the_sites_fault_to_mend(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="not an Ed25519"):
        verify_head(b"nonsense", "Ashford", head(1), (), "")


def test_the_key_is_private_and_kept(tmp_path: Path) -> None:
    first = Countersigner.open(tmp_path)
    assert stat.S_IMODE((tmp_path / "countersign.key").stat().st_mode) == 0o600
    assert (tmp_path / "server.pub").read_bytes() == first.public_key
    assert Countersigner.open(tmp_path).public_key == first.public_key


def test_another_kind_of_private_key_is_refused(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for content in (pem, b"nonsense"):
        (tmp_path / "countersign.key").write_bytes(content)
        with pytest.raises(CoordinatorError, match="not an Ed25519"):
            Countersigner.open(tmp_path)


def known_head(heads: HeadBook, site: str) -> LedgerHead | None:
    known, _ = heads.known(site)
    return known.head if known else None


def test_heads_are_kept_across_runs_and_told_with_a_signature(tmp_path: Path) -> None:
    first = book(tmp_path)
    assert first.known("Ashford") == (None, "")
    first.confirm({"Ashford": head(2), "Brook": head(5)}, OTHER)
    first.confirm({"Ashford": head(4)}, STUDY)
    told, signature = book(tmp_path).known("Ashford")
    assert told == Known(head=head(4), studies=(STUDY, OTHER))
    key = Countersigner.open(tmp_path).public_key
    assert verify_head(key, "Ashford", told.head, told.studies, signature)
    assert book(tmp_path).known("Brook")[0] == Known(head=head(5), studies=(OTHER,))


def test_an_older_or_forked_head_is_objected_to_and_never_recorded(tmp_path: Path) -> None:
    heads = book(tmp_path)
    heads.confirm({"Ashford": head(4)}, STUDY)
    assert "3 entries; 4 were seen" in heads.objection("Ashford", head(3))
    assert "another last entry" in heads.objection("Ashford", head(4, "b"))
    assert heads.objection("Ashford", head(4)) == ""
    assert heads.objection("Ashford", head(9, "c")) == ""
    heads.confirm({"Ashford": head(3), "Brook": head(1)}, OTHER)
    # The answer with the older head was an answer all the same.
    assert book(tmp_path).known("Ashford")[0] == Known(head=head(4), studies=(STUDY, OTHER))
    assert known_head(book(tmp_path), "Brook") == head(1)


def test_runs_at_the_same_time_keep_each_others_heads(tmp_path: Path) -> None:
    one, two = book(tmp_path), book(tmp_path)
    two.confirm({"Ashford": head(30)}, STUDY)
    one.confirm({"Brook": head(5)}, OTHER)
    assert known_head(one, "Ashford") == known_head(two, "Ashford") == head(30)
    assert "4 entries; 30 were seen" in one.objection("Ashford", head(4))
    one.confirm({"Ashford": head(4)}, STUDY)
    assert known_head(book(tmp_path), "Ashford") == head(30)
    assert known_head(book(tmp_path), "Brook") == head(5)


def test_processes_that_confirm_at_once_lose_no_head(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from server.countersign import Countersigner, HeadBook\n"
        "from shared.protocol import LedgerHead\n"
        "home, run = Path(sys.argv[1]), sys.argv[2]\n"
        "heads = HeadBook(home / 'heads.json', Countersigner.open(home))\n"
        "for n in range(40):\n"
        "    heads.confirm({f'{run}-{n}': LedgerHead(entries=n, hash='a' * 64)}, 'b' * 64)\n"
    )
    Countersigner.open(tmp_path)
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    kept = json.loads((tmp_path / "heads.json").read_text())
    assert len(kept) == 80


def test_a_damaged_book_stops_the_server_instead_of_forgetting(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text('{"Ashford": ')
    with pytest.raises(CoordinatorError, match="cannot be read"):
        book(tmp_path)
