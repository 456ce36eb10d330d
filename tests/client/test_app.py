"""The node's app: every message gets a typed answer where one is possible, and an audit line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.audit import AuditLog, Line
from client.vault import Vault
from shared.errors import ProtocolError
from shared.flower.wire import from_content
from shared.protocol import Reply, Request
from shared.study import Study

STUDY = Study.model_validate({"name": "chest", "task": {"classes": ("healthy", "ill")}})
REQUEST = Request(
    task="train", run="run-1", study_digest=STUDY.digest, study=STUDY.canonical(), round=2
)
TEXT = REQUEST.model_dump_json()
PROTOCOL_1 = Path(__file__).parent.parent / "data" / "protocol-1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's home; this process is what Flower starts for a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    (tmp_path / "site.toml").write_text(
        'name = "ward"\n[server]\naddress = "localhost:1"\n[data]\nimages = "images"\n'
        'labels = "labels.csv"\n'
    )
    return tmp_path


def ask(home: Path, content: RecordDict) -> Reply:
    context = Context(1, 2, {"home": str(home)}, RecordDict(), {})
    answer = app(Message(content, 2, "train"), context)
    reply, update = from_content(Reply, answer.content, "test")
    assert update == {}
    return reply


def said(text: Any) -> RecordDict:
    return RecordDict({"record": ConfigRecord({"json": text})})


def audit(home: Path) -> list[Line]:
    return AuditLog(home / "audit.jsonl", Vault.open(home / "vault.key")).lines()


def code(reply: Reply) -> str:
    assert reply.refusal is not None
    return reply.refusal.code


def test_a_request_is_answered(home: Path) -> None:
    assert code(ask(home, said(TEXT))) == "study-not-approved"


def test_a_request_of_the_first_release_is_refused_in_its_own_words(home: Path) -> None:
    context = Context(1, 2, {"home": str(home)}, RecordDict(), {})
    content = said((PROTOCOL_1 / "request.json").read_text())
    answer = app(Message(content, 2, "train"), context).content
    assert not answer.array_records
    told = json.loads(str(answer.config_records["record"]["json"]))
    reads = json.loads((PROTOCOL_1 / "reply.schema.json").read_text())
    assert told.keys() <= reads["properties"].keys()
    assert told["version"] == reads["properties"]["version"]["const"] == 1
    refusal = reads["$defs"]["Refusal"]["properties"]
    assert told["refusal"].keys() <= refusal.keys()
    assert told["refusal"]["code"] in refusal["code"]["enum"]
    assert (told["outcome"], told["run"], told["round"]) == ("refused", "run-1", 2)
    (line,) = audit(home)
    assert (line.event, line.code, line.run) == ("round-refused", "message-invalid", "run-1")


def not_weights() -> RecordDict:
    content = said(TEXT)
    content["weights"] = ArrayRecord({"safetensors": Array("uint8", (3,), "safetensors", b"abc")})
    return content


@pytest.mark.parametrize(
    "content",
    [
        said(TEXT.replace('"version":2', '"version":3')),
        said(TEXT[:-1] + ',"urgency":3}'),
        said(TEXT.replace('"task":"train"', '"task":"unlearn"')),
        said(TEXT.replace('"attempt":0', '"attempt":-1')),
        not_weights(),
    ],
)
def test_a_request_of_another_form_is_refused_by_code_and_noted(
    home: Path, content: RecordDict
) -> None:
    reply = ask(home, content)
    assert code(reply) == "message-invalid"
    assert (reply.study_digest, reply.run, reply.round) == (STUDY.digest, "run-1", 2)
    told = reply.model_dump(exclude_defaults=True, exclude_none=True)
    assert told.keys() == {"study_digest", "run", "round", "outcome", "refusal"}
    (line,) = audit(home)
    assert (line.event, line.code, line.error) == (
        "round-refused",
        "message-invalid",
        "ProtocolError",
    )
    assert (line.study, line.run, line.round) == (STUDY.digest, "run-1", 2)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        said(3),
        said("{"),
        said("[]"),
        said(TEXT.replace(STUDY.digest, "../../etc")),
        said(TEXT.replace("run-1", "r" * 65)),
        said(TEXT.replace('"round":2', '"round":2e99')),
        said(TEXT.replace('"round":2', '"round":1000001').replace('"version":2', '"version":3')),
        said(TEXT[:-1] + f',"urgency":"{"!" * 5_000_000}"}}'),
    ],
)
def test_a_message_that_does_not_say_what_it_asks_is_noted_and_left_to_flower(
    home: Path, content: RecordDict
) -> None:
    with pytest.raises(ProtocolError):
        ask(home, content)
    (line,) = audit(home)
    assert (line.event, line.code, line.study, line.run) == (
        "round-refused",
        "message-invalid",
        "",
        "",
    )


@pytest.mark.parametrize("text", [TEXT, TEXT.replace('"version":2', '"version":3')])
def test_a_node_that_cannot_use_its_own_files_still_refuses_by_code(
    home: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "vault.key").mkdir()
    reply = ask(home, said(text))
    assert code(reply) == ("site-unready" if text == TEXT else "message-invalid")
    assert str(home) not in reply.model_dump_json()
    assert "vault.key" in capsys.readouterr().err
