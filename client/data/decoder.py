"""The decoding process: reads hostile files under limits, so that only it can be harmed.

Run by `client.data.worker` as `python -m client.data.decoder SOCKET INPUT MEMORY SECONDS
GROUPING...`. For every file the parent sends one byte (1: the patient's id is wanted) and an open
descriptor; the answer is `HEADER` and behind it reason, patient id, cells (a byte for each
grouping) and pixels, nothing that needs unpickling.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import warnings
from pathlib import Path

from client.data.pixels import decode
from client.data.reasons import Reason, Unusable
from client.data.wire import HEADER, MAX_TEXT, READY
from client.process import forbid_core_dumps
from shared.study import Input

PROCESSOR_PART = 4
"""A file may take one part in so many of its time limit in processor time."""


def main(arguments: list[str]) -> None:
    """Set the limits, say so, and serve until the parent closes the socket."""
    descriptor, spec, memory_mb, seconds, *groupings = arguments
    warnings.simplefilter("ignore")
    logging.disable()
    _limit(int(memory_mb))
    with socket.socket(fileno=int(descriptor)) as pipe:
        pipe.sendall(READY)
        _serve(pipe, Input.model_validate_json(spec), groupings, float(seconds))


def _serve(pipe: socket.socket, spec: Input, groupings: list[str], seconds: float) -> None:
    while True:
        wanted, descriptors, _, _ = socket.recv_fds(pipe, 1, 1)
        if not wanted:
            return
        # The parent ends a slow decoder at `seconds`; this ends one whose parent is gone, or that
        # computes for so long that it is not the disk's fault.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
        signal.setitimer(signal.ITIMER_PROF, seconds / PROCESSOR_PART)
        reason, answer = _answer(descriptors[0], spec, wanted == b"\1", groupings)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.sendall(answer)
        if reason == Reason.TOO_LARGE:
            return  # a process that ran out of memory is not to be trusted with another file


def _answer(
    descriptor: int, spec: Input, want_patient: bool, groupings: list[str]
) -> tuple[str, bytes]:
    reason, patient, content = "", b"", b""
    with open(descriptor, "rb") as stream:
        try:
            image, name, cells = decode(stream, spec, want_patient, groupings)
            patient = name.encode("utf-8", "replace")[:MAX_TEXT]
            content = bytes(cells) + image.astype("<f4").tobytes()
        except Unusable as error:
            reason = error.reason.value
    code = reason.encode()
    return reason, HEADER.pack(len(code), len(patient), len(content)) + code + patient + content


def _limit(memory_mb: int) -> None:
    """Allow so much memory beyond what is in use now, no core dump, and no file to be written."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    forbid_core_dumps()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
