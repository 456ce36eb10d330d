"""Starting the SuperLink: check its ports first, start it, wait until it answers."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from server.home import HOME, ServerHome
from shared.errors import CoordinatorError
from shared.flower.executor import executor_command
from shared.flower.link import Control, LinkSettings, process_environment, superlink_command

LOG = "server.log"
"""Log of the server's processes, in its home."""

START_SECONDS = 60.0
"""Longest wait for a SuperLink that lives but does not answer."""


class Start(Protocol):
    """Starts a process, which the caller owns and ends."""

    def __call__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command under a name; its output goes to the log."""


def start_server(home: ServerHome, start: Start) -> None:
    """Start the SuperLink and the process that runs its runs.

    Raises:
        CoordinatorError: See `start_link`.
    """
    start_link(home, start)
    start_executor(home, start)


def start_link(home: ServerHome, start: Start) -> subprocess.Popen[bytes]:
    """Start the SuperLink and return once hospitals and the coordinator can reach it.

    Raises:
        CoordinatorError: A port is taken, or the SuperLink died or does not answer.
    """
    settings = home.settings
    for address in (settings.fleet, _control_address(home)):
        _check_free(address)
    log = home.path / LOG
    link = LinkSettings(
        home=home.path,
        fleet=settings.fleet,
        control_port=settings.control_port,
        certificate=home.path / "server.pem",
        key=home.path / "server.key",
        ca=home.path / "ca.pem",
    )
    process = start("superlink", superlink_command(link), _environment(home), log)
    try:
        _wait_until_it_answers(home, process, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def start_executor(home: ServerHome, start: Start) -> subprocess.Popen[bytes]:
    """Start the process that runs the SuperLink's runs; it ends with this one."""
    ca = str((home.path / "ca.pem").resolve())
    command = executor_command("server.executor", _control_address(home), os.getpid(), ca)
    return start("runs", command, _environment(home), home.path / LOG)


def _environment(home: ServerHome) -> dict[str, str]:
    # Runs begin seldom; five questions a second whether there is one kept both sides busy.
    extra = {HOME: str(home.path.resolve()), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1"}
    return process_environment(home.path, **extra)


def _control_address(home: ServerHome) -> str:
    return f"127.0.0.1:{home.settings.control_port}"


def control(home: ServerHome) -> Control:
    """Return the control API of the running SuperLink."""
    return Control(home.settings.control_port, home.path / "ca.pem")


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        return "it left no log"
    return next((line for line in reversed(lines) if line), "it left no message")


def _wait_until_it_answers(home: ServerHome, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (_answers(home.settings.fleet) and _answers(_control_address(home))):
        if process.poll() is not None:
            raise CoordinatorError(
                f"the SuperLink ended at start: {last_line(log)}", str(log), "Read its log"
            )
        if time.monotonic() > deadline:
            raise CoordinatorError("the SuperLink does not answer", str(log), "Read its log")
        time.sleep(0.1)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_free(address: str) -> None:
    host, port = _split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the servers do: a port in TIME_WAIT is free, one with a listener is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CoordinatorError(
                f"the port cannot be used: {os.strerror(error.errno or 0)}",
                address,
                "Stop the program that uses it, or choose another port in server.json",
            ) from None


def _answers(address: str) -> bool:
    host, port = _split(address)
    try:
        any_address = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        any_address = False
    try:
        with socket.create_connection(("localhost" if any_address else host, port), 1):
            return True
    except OSError:
        return False
