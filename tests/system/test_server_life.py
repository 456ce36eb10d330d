"""A server outlives the end of any of its processes, and of itself: its runs go on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from system_kit import Federation, small_study, study_toml
from typer.testing import CliRunner

from client.node import free_port
from server import runs_cli
from server.cli import app
from server.home import ServerHome
from shared.errors import CoordinatorError
from shared.pki import certificate_hosts
from shared.study import Study
from simulations.phantoms import make_phantoms
from simulations.processes import Processes, descendants

pytestmark = pytest.mark.system

CONSILIUM = str(Path(sys.executable).with_name("consilium"))


def collect_orphans() -> None:
    """Do what init does: these tests' process is given the orphans of what it kills."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Server:
    """`consilium server start`, as a service runs it."""

    def __init__(self, home: Path) -> None:
        self.home, self.out = home, home.parent / "server.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it and wait until it says that it is ready."""
        with self.out.open("wb") as out:
            command = [CONSILIUM, "server", "start", "--home", str(self.home), *options]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        self.wait_to_say("Ready")

    def wait_to_say(self, text: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.out.read_text():
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.1)

    def child(self, pattern: str) -> int:
        """Return the id of the child whose command line has a pattern; wait until it is there."""
        assert self.process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for process in descendants(self.process.pid):
                words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if re.search(pattern, words):
                    return process
            time.sleep(0.1)
        raise AssertionError(f"no process like {pattern}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until all that it started has ended too."""
        assert self.process is not None
        family = descendants(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(30)
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{process}").exists() for process in family):
            assert time.monotonic() < deadline, "something it started lives on"
            collect_orphans()
            time.sleep(0.1)
        self.process = None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, Federation]]:
    """A server that is started as the documents say, and one hospital that is set up."""
    home = ServerHome.create(
        tmp_path / "server", f"127.0.0.1:{free_port()}", free_port(), ["localhost"]
    )
    images = make_phantoms(tmp_path / "images", sites=1, patients=60, test_patients=5)
    server = Server(home.path)
    server.start()
    with Processes() as processes:
        federation = Federation(tmp_path, processes, home, images)
        federation.add_site(start=False)
        try:
            yield server, federation
        finally:
            if server.process:
                server.stop()


def publish(federation: Federation, study: Study) -> None:
    """Approve a study at the hospital and publish it, with the documents' command."""
    federation.approve(study)
    path = federation.folder / "study.toml"
    path.write_text(study_toml(study))
    command = [CONSILIUM, "server", "run", "--home", str(federation.home.path), str(path)]
    subprocess.run([*command, "--name", "r", "--no-follow"], check=True)


def test_a_run_starts_although_the_process_of_the_runs_was_killed(served) -> None:
    server, federation = served
    os.kill(server.child("server.executor|superexec"), signal.SIGKILL)
    publish(federation, small_study())
    federation.wait_for_event("r", "run-started")


def test_a_run_goes_on_when_the_superlink_is_killed(served) -> None:
    server, federation = served
    publish(federation, small_study())
    federation.wait_for_event("r", "waiting-for-sites")
    # What a run's process may do is on no command line, where every user could read it.
    started = [Path(f"/proc/{p}/cmdline").read_bytes() for p in descendants(server.process.pid)]
    assert not [line for line in started if b"--token" in line]
    os.kill(server.child("superlink"), signal.SIGKILL)
    server.wait_to_say("the SuperLink was started again")
    federation.start_node(federation.nodes[0])
    federation.wait_for_event("r", "run-finished")


def test_an_open_run_goes_on_by_itself_after_a_reboot(served) -> None:
    server, federation = served
    publish(federation, small_study())
    federation.wait_for_event("r", "waiting-for-sites")
    server.stop(signal.SIGKILL)
    server.start("--no-resume")
    server.stop()
    assert len([e for e in federation.events("r") if e["event"] == "run-started"]) == 1
    server.start()
    server.wait_to_say("run r goes on")
    federation.start_node(federation.nodes[0])
    federation.wait_for_event("r", "run-finished")


def test_a_run_nobody_begins_is_an_error_within_a_minute(served, monkeypatch) -> None:
    server, federation = served
    federation.home.create_run("r", small_study())
    os.kill(server.child("server.executor|superexec"), signal.SIGSTOP)
    monkeypatch.setattr(runs_cli, "START_SECONDS", 4.0)
    result = CliRunner().invoke(app, ["resume", "--home", str(server.home), "r"])
    assert isinstance(result.exception, CoordinatorError)
    assert "nothing works on the run" in str(result.exception)


def test_a_paused_run_rests_until_it_is_resumed_and_a_new_certificate_is_taken(served) -> None:
    server, federation = served
    publish(federation, small_study())
    federation.wait_for_event("r", "waiting-for-sites")
    subprocess.run([CONSILIUM, "server", "pause", "--home", str(server.home), "r"], check=True)
    federation.wait_for_event("r", "run-interrupted")

    renew = [CONSILIUM, "server", "renew", "--home", str(server.home), "--host", "new.example.org"]
    subprocess.run(renew, check=True)
    server.wait_to_say("the SuperLink was started again")
    assert "new.example.org" in presented(federation.home)
    federation.start_node(federation.nodes[0])
    federation.wait("node", lambda: (federation.nodes[0].home / "contact").exists())
    assert len([e for e in federation.events("r") if e["event"] == "run-started"]) == 1
    subprocess.run([CONSILIUM, "server", "resume", "--home", str(server.home), "r"], check=True)
    federation.wait_for_event("r", "run-finished")


def presented(home: ServerHome) -> list[str]:
    """Return the names in the certificate the server shows."""
    host, port = home.settings.fleet.split(":")
    return certificate_hosts(ssl.get_server_certificate((host, int(port))).encode())
