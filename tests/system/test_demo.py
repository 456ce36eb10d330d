"""`consilium demo` as a user runs it: real processes, real TLS; nothing is left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from client.hospital import open_hospital
from simulations.processes import descendants

pytestmark = pytest.mark.system

CONSILIUM = str(Path(sys.executable).with_name("consilium"))


def start_demo(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [CONSILIUM, "demo", "--out", str(out), "--rounds", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read the demo's output until a line holds `text`; return all that was read."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the demo ended without {text!r}:\n{seen}")


def assert_all_end(processes: list[int]) -> None:
    for process in processes:
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        ended = bool(select.select([descriptor], [], [], 30)[0])
        os.close(descriptor)
        assert ended, Path(f"/proc/{process}/cmdline").read_bytes()


def test_three_hospitals_train_one_model_and_leave_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(out)
    seen = wait_for(demo, "nodes started")
    family = descendants(demo.pid)
    assert len(family) >= 4
    rest, _ = demo.communicate(timeout=400)
    assert demo.returncode == 0, seen + rest
    assert_all_end(family)

    card = json.loads((out / "model-card.json").read_text())
    assert 0.0 <= card["test_auc"] <= 1.0
    assert len(card["sites"]) == 3
    for site in card["sites"].values():
        assert 0 < site["epsilon"] <= 8.0
    for name in card["sites"]:  # all have room for it: none is noise in place of a patient
        with open_hospital(out / "work" / name).ledger() as ledger:
            assert {e.kind for e in ledger.entries()} >= {"join"}
            assert "leave-out" not in {e.kind for e in ledger.entries()}
    weights = load_file(out / "model.safetensors")
    assert sum(array.size for array in weights.values()) < 200_000
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[-1]["closing"]
    page = (out / "report.html").read_text()
    assert "set aside" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    # Nothing exact or personal crossed: the server's whole folder names no patient.
    server = out / "work" / "server"
    tables = list((out / "work" / "images").rglob("labels.csv"))
    patients = {line.split(",")[1] for t in tables for line in t.read_text().splitlines()[1:]}
    everything = b"".join(p.read_bytes() for p in server.rglob("*") if p.is_file())
    assert len(patients) > 100
    assert not [p for p in patients if p.encode() in everything]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    demo = start_demo(tmp_path / "out")
    wait_for(demo, "nodes started")
    family = descendants(demo.pid)
    assert len(family) >= 4
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, rest
    assert "Stopped" in rest
    assert "Traceback" not in rest
    assert_all_end(family)


def test_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    demo = start_demo(tmp_path / "out")
    wait_for(demo, "nodes started")
    family = descendants(demo.pid)
    demo.kill()
    demo.communicate()
    assert_all_end(family)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "-1"], "privacy.epsilon"),
        (["--model", "resnet"], "model"),
        (["--images", "/nowhere/x.npz"], "/nowhere/x.npz"),
        (["--device", "tpu"], "device"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = subprocess.run(
        [CONSILIUM, "demo", "--out", str(tmp_path / "out"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_used_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = subprocess.run(
        [CONSILIUM, "demo", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "in use" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep"
