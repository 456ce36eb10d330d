"""A node that the server does not admit is told which of the many reasons it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from system_kit import Federation, small_study

from client.admission import wait_to_enter
from client.site import Site
from server.link import control
from shared.errors import SiteError
from shared.flower.admission import Gate
from shared.flower.node import read_node_key
from simulations.processes import descendants

pytestmark = pytest.mark.system

CONSILIUM = str(Path(sys.executable).with_name("consilium"))
DEAD_PROXY = "http://127.0.0.1:9"


def gate(site: Site, ahead: float = 0.0) -> Gate:
    """The server as a site's node sees it, its clock set wrong."""
    key = read_node_key(site.node_key)
    address, ca = site.config.server.address, (site.home / "ca.pem").read_bytes()
    return Gate(address, ca, key, lambda: time.time() + ahead)


def processes_like(words: str) -> list[int]:
    """Return the processes of this test whose command line has these words."""
    found = []
    for process in descendants():
        with contextlib.suppress(OSError):
            if words.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def start_in_vain(site: Site) -> str:
    """Start a node that is to end by itself, and return what it says."""
    command = [CONSILIUM, "site", "start", "--home", str(site.home)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def refused(site: Site, ahead: float = 0.0) -> str:
    with gate(site, ahead) as it, pytest.raises(SiteError) as caught:
        wait_to_enter(it, "the server", site.home / "admitted", print, lambda seconds: None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(12, "12 s ahead of"), (-400, "400 s behind"), (7300, "7300 s ahead of")],
)
def test_a_wrong_clock_is_named_with_its_error(
    federation: Federation, ahead: float, said: str
) -> None:
    site = federation.add_site(start=False)
    assert f"its clock is {said} the server's" in refused(site, ahead)


def test_a_key_is_unknown_online_or_revoked(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = federation.add_site(enrol=False, start=False)
    assert "It is not enrolled yet" in start_in_vain(stranger)

    site = federation.add_site(start=False)
    with monkeypatch.context() as proxied:
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"):
            proxied.setenv(name, DEAD_PROXY)
        federation.start_node(site)
    with gate(site) as it:
        federation.wait("node online", lambda: it.try_to_enter().verdict == "online")
    assert "another node runs on this home" in start_in_vain(site)
    # As after a kill, and as with a copy elsewhere: it waits, then it says so.
    assert "another node with this key is online. A copy" in refused(site).replace(
        " (the server)", ""
    )

    revoke = [CONSILIUM, "server", "revoke", "--home", str(federation.home.path)]
    subprocess.run([*revoke, site.config.name], check=True, stdout=subprocess.DEVNULL)
    federation.wait("end of the revoked node", federation.processes.dead)
    log = (site.home / "node.log").read_text()
    assert "the server no longer knows this node's key; it did at 20" in log
    assert "the server no longer knows this node's key; it did at 20" in start_in_vain(site)


def test_a_node_whose_training_process_is_killed_ends_too(federation: Federation) -> None:
    site = federation.add_site()
    (executor,) = federation.wait("training process", lambda: processes_like("client.executor"))
    os.kill(executor, signal.SIGKILL)
    federation.wait("end of the node", federation.processes.dead)
    assert "the training process ended" in (site.home / "node.log").read_text()


def test_a_node_killed_within_a_round_is_asked_again_and_answers(federation: Federation) -> None:
    site = federation.add_site()
    study = small_study(training={"local_steps": 400})
    federation.approve(study)
    federation.home.create_run("r", study)
    control(federation.home).start_run("r")
    federation.wait_for_event("r", "site-sent")
    for process in processes_like(str(site.home)):
        os.kill(process, signal.SIGKILL)
    # It waits until the server no longer counts it as online, and then connects.
    federation.start_node(site)
    federation.wait("second question", lambda: len(sent(federation)) == 2)
    assert not [e for e in federation.events("r") if e["event"] == "site-failed"]


def sent(federation: Federation) -> list[object]:
    return [event for event in federation.events("r") if event["event"] == "site-sent"]


def test_the_doctor_finds_a_site_ready_and_then_revoked(federation: Federation) -> None:
    site = federation.add_site(start=False)
    command = [CONSILIUM, "site", "doctor", "--home", str(site.home), "--json"]
    ready = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ready.returncode == 0, ready.stdout
    checks = {it["check"]: it["level"] for it in json.loads(ready.stdout)["findings"]}
    assert {checks[name] for name in ("server", "certificate", "enrolment", "clock")} == {"good"}
    revoke = [CONSILIUM, "server", "revoke", "--home", str(federation.home.path)]
    subprocess.run([*revoke, site.config.name], check=True, stdout=subprocess.DEVNULL)
    revoked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert revoked.returncode == 1
    findings = {it["check"]: it for it in json.loads(revoked.stdout)["findings"]}
    assert findings["enrolment"]["level"] == "problem"
    assert "node.pub" in findings["enrolment"]["remedy"]
