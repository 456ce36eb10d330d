"""The site's end of the decoding process: one long-lived child, killed and replaced at need."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from client.data.folder import open_regular
from client.data.reasons import Reason
from client.data.wire import HEADER, MAX_TEXT, READY
from shared.errors import SiteError
from shared.study import Input
from shared.subgroups import CELLS

START_SECONDS = 120
"""How long the process may take to start, on the slowest of disks."""

ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")
"""All of the environment the process gets to see."""


@dataclass(frozen=True)
class Decoded:
    """What became of one file: an image, or the reason there is none."""

    image: npt.NDArray[np.float32] | None = None  # [channels, size, size] in [-1, 1]
    reason: Reason | None = None
    patient: str = ""  # the file's PatientID, if it was asked for
    cells: tuple[int, ...] = ()  # in each grouping that was asked for


class DecodeWorker:
    """Decodes files in another process with a limit on time and memory for each.

    A context manager; on leaving it no process is left.

    Args:
        spec: The study's input.
        seconds: Time limit for one file; a quarter of it is the limit of processor time.
        memory_mb: Memory limit of the process beyond what it starts with, in MiB.
        groupings: Those for which each file's cell is wanted (`shared.subgroups`).
    """

    def __init__(
        self, spec: Input, *, seconds: float, memory_mb: int, groupings: Sequence[str] = ()
    ) -> None:
        self._spec, self._seconds, self._memory_mb = spec, seconds, memory_mb
        self._groupings = groupings
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        self._served = 0

    def __enter__(self) -> DecodeWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        """The process's id, None while there is no process."""
        return self._process.pid if self._process else None

    def decode(self, path: str, *, want_patient: bool = False) -> Decoded:
        """Decode one file; never raises on account of the file.

        Args:
            path: Of a regular file.
            want_patient: Whether to read the patient's id from the file.

        Raises:
            SiteError: The process does not start.
        """
        try:
            descriptor = open_regular(path)
        except OSError:
            return Decoded(reason=Reason.UNREADABLE_FILE)
        try:
            decoded = self._ask(descriptor, want_patient)
            if self._process is None and decoded.reason != Reason.TOO_SLOW and self._served > 1:
                # Its memory may have been spent on earlier files: this one gets a fresh process.
                os.lseek(descriptor, 0, os.SEEK_SET)
                decoded = self._ask(descriptor, want_patient)
            return decoded
        finally:
            os.close(descriptor)

    def _ask(self, descriptor: int, want_patient: bool) -> Decoded:
        pipe = self._pipe or self._start()
        self._served += 1
        pipe.settimeout(self._seconds)
        try:
            socket.send_fds(pipe, [b"\1" if want_patient else b"\0"], [descriptor])
            decoded = self._receive(pipe)
        except TimeoutError:
            decoded = Decoded(reason=Reason.TOO_SLOW)
        except (OSError, EOFError, ValueError):
            decoded = Decoded(reason=self._why_ended())
        if decoded.reason in (Reason.TOO_SLOW, Reason.TOO_LARGE, Reason.DECODER_CRASHED):
            self._stop()
        return decoded

    def _why_ended(self) -> Reason:
        """Tell a process that ran out of processor time from one that crashed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process and self._process.wait(timeout=1) == -signal.SIGPROF:
                return Reason.TOO_SLOW
        return Reason.DECODER_CRASHED

    def _receive(self, pipe: socket.socket) -> Decoded:
        """Receive one answer; it comes from a process that hostile bytes may have taken over.

        Raises:
            TimeoutError: It took too long.
            EOFError: The process ended.
            ValueError: The answer does not have the agreed form.
        """
        deadline = time.monotonic() + self._seconds
        shape = (self._spec.channels, self._spec.size, self._spec.size)
        expected = len(self._groupings) + 4 * math.prod(shape)
        reason, patient, content = HEADER.unpack(_receive_exactly(pipe, HEADER.size, deadline))
        if max(reason, patient) > MAX_TEXT or content != (0 if reason else expected):
            raise ValueError
        code = _receive_exactly(pipe, reason, deadline).decode()
        name = _receive_exactly(pipe, patient, deadline).decode()
        if code:
            return Decoded(reason=Reason(code))
        cells = tuple(_receive_exactly(pipe, len(self._groupings), deadline))
        pixels = _receive_exactly(pipe, 4 * math.prod(shape), deadline)
        image = np.frombuffer(pixels, dtype="<f4").reshape(shape)
        if not (np.abs(image) <= 1).all():  # false for NaN too
            raise ValueError
        if any(c >= len(CELLS[g]) for c, g in zip(cells, self._groupings, strict=True)):
            raise ValueError
        return Decoded(image=image, patient=name, cells=cells)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._pipe, self._served = ours, 0
        with theirs, contextlib.suppress(OSError, EOFError):
            self._process = self._launch(theirs.fileno())
            theirs.close()
            if _receive_exactly(ours, len(READY), time.monotonic() + START_SECONDS) == READY:
                return ours
        self._stop()
        raise SiteError(
            "the process that decodes images does not start",
            "client.data.decoder",
            "Install Consilium again, with all its packages",
        )

    def _launch(self, descriptor: int) -> subprocess.Popen[bytes]:
        limits = (str(self._memory_mb), str(self._seconds))
        arguments = (str(descriptor), self._spec.model_dump_json(), *limits, *self._groupings)
        known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "client.data.decoder", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor],
            env=known | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _stop(self) -> None:
        if self._pipe:
            self._pipe.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None


def _receive_exactly(pipe: socket.socket, count: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        pipe.settimeout(max(1e-6, deadline - time.monotonic()))
        part = pipe.recv(min(count - len(received), 2**20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
