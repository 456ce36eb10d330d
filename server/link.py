"""Running the SuperLink: check its ports first, then start it and wait until it answers."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from server.home import HOME, ServerHome
from shared.errors import CoordinatorError
from shared.flower.link import Control, LinkSettings, process_environment, superlink_command

Start = Callable[[list[str], Mapping[str, str], Path], "subprocess.Popen[bytes]"]
"""How a process is started: command, environment, log file."""

START_SECONDS = 60.0
"""Longest wait for a SuperLink that lives but does not answer."""


def start_link(home: ServerHome, start: Start) -> subprocess.Popen[bytes]:
    """Start the SuperLink and return once hospitals and the coordinator can reach it.

    Args:
        home: The server's home.
        start: Starts the process; the caller owns and ends it.

    Raises:
        CoordinatorError: A port is taken, or the SuperLink died or does not answer.
    """
    settings = home.settings
    for address in (settings.fleet, f"127.0.0.1:{settings.control_port}"):
        _check_free(address)
    log = home.path / "superlink.log"
    link = LinkSettings(
        home=home.path,
        fleet=settings.fleet,
        control_port=settings.control_port,
        certificate=home.path / "server.pem",
        key=home.path / "server.key",
        ca=home.path / "ca.pem",
    )
    environment = process_environment(home.path, **{HOME: str(home.path.resolve())})
    process = start(superlink_command(link), environment, log)
    deadline = time.monotonic() + START_SECONDS
    while not (_answers(settings.fleet) and _answers(f"127.0.0.1:{settings.control_port}")):
        if process.poll() is not None:
            raise CoordinatorError(
                f"the SuperLink ended at start: {last_line(log)}", str(log), "Read its log"
            )
        if time.monotonic() > deadline:
            raise CoordinatorError("the SuperLink does not answer", str(log), "Read its log")
        time.sleep(0.1)
    return process


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


def run_in_foreground(home: ServerHome) -> int:
    """Run the SuperLink until it ends or is interrupted; return its exit code."""

    def start(command: list[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(command, env=env, stdout=output, stderr=output)

    process = start_link(home, start)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        return process.wait()


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
