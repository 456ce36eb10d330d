"""Records and weights survive Flower's messages; hostile ones are refused whole."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.cli.install import install_from_fab
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.flower import bundle as bundle_module
from shared.flower.bundle import bundle, bundle_digest, is_accepted, sources_digest
from shared.flower.wire import from_content, to_content
from shared.protocol import Reply

REPLY = Reply(study_digest="ab" * 32, run="r1", round=1, outcome="update", patients=3)


def test_weights_arrive_bit_for_bit() -> None:
    weights = {
        "a.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "b": np.array([1e-38, -0.0, 3.4e38], np.float32),
    }
    reply, arrived = from_content(Reply, to_content(REPLY, weights), "here")
    assert reply == REPLY
    assert {n: a.tobytes() for n, a in arrived.items()} == {
        n: a.tobytes() for n, a in weights.items()
    }


def test_no_weights_is_no_weights() -> None:
    assert from_content(Reply, to_content(REPLY, {}), "here") == (REPLY, {})


@given(st.binary(max_size=300))
def test_foreign_weight_bytes_are_refused(blob: bytes) -> None:
    content = RecordDict({"record": ConfigRecord({"json": REPLY.model_dump_json()})})
    content["weights"] = ArrayRecord(
        {"safetensors": Array("uint8", (len(blob),), "safetensors", blob)}
    )
    try:
        _, weights = from_content(Reply, content, "here")
    except ProtocolError:
        return
    assert weights == {}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"record": ConfigRecord({"other": "x"})}),
        RecordDict({"record": ConfigRecord({"json": 3})}),
        RecordDict({"record": ConfigRecord({"json": "{}"})}),
        RecordDict(
            {"record": ConfigRecord({"json": REPLY.model_dump_json()}), "weights": ArrayRecord()}
        ),
    ],
)
def test_content_of_another_form_is_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        from_content(Reply, content, "here")


def test_bundle_holds_no_code_and_is_the_same_each_time() -> None:
    content = bundle()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
        text = archive.read("pyproject.toml").decode()
    assert "dependencies" not in text
    assert bundle_digest() == hashlib.sha256(content).hexdigest() == bundle_digest()
    assert len(content) < 1024


def test_the_bundle_names_the_client_and_shared_sources_and_no_others(tmp_path: Path) -> None:
    root = Path(bundle_module.__file__).parents[2]
    for package in ("client", "shared", "server"):
        shutil.copytree(root / package, tmp_path / package)
    assert sources_digest(tmp_path) == sources_digest(root)
    assert sources_digest(root).encode() in bundle()

    def changed(name: str) -> bool:
        before, path = sources_digest(tmp_path), tmp_path / name
        path.write_bytes(path.read_bytes() + b"# changed\n")
        return sources_digest(tmp_path) != before

    assert changed("client/rounds.py")
    assert changed("shared/study.py")
    # A fix of the server alone, and a list of releases that are alike, lock nobody out.
    assert not changed("server/federation.py")
    assert not changed("shared/flower/accepted.py")
    before = sources_digest(tmp_path)
    (tmp_path / "client" / "rounds.py").rename(tmp_path / "client" / "round.py")
    assert sources_digest(tmp_path) != before
    text = tmp_path / "client" / "round.py"
    before = sources_digest(tmp_path)
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    assert sources_digest(tmp_path) == before


def test_a_release_takes_the_bundles_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_accepted(bundle())
    assert not is_accepted(b"another")
    earlier = frozenset({hashlib.sha256(b"another").hexdigest()})
    monkeypatch.setattr(bundle_module, "EARLIER", earlier)
    assert is_accepted(b"another")


def test_flower_accepts_the_bundle(tmp_path: Path) -> None:
    folder = install_from_fab(bundle(), tmp_path, skip_prompt=True)
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["pyproject.toml"]
