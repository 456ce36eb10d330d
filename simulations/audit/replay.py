"""Whether the randomness of training can be replayed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from client.hospital import open_hospital
from client.privacy.stream import RandomStream
from shared.protocol import Request
from shared.study import Study

BYTES, WORD = 4096, 8
SITE = """
name = "audited"
server.address = "localhost:1"
data.table = "patients.csv"
"""


@dataclass(frozen=True)
class ReplayResult:
    """Where two streams that had to differ drew the same.

    Attributes:
        reopened: Two streams, opened after every seed that code can set was set alike.
        forked: One stream in a process and in its fork.
    """

    reopened: bool
    forked: bool

    @property
    def unpredictable(self) -> bool:
        """Whether no draw came twice."""
        return not (self.reopened or self.forked)


@contextmanager
def hospital_streams(study: Study) -> Iterator[Callable[[], RandomStream]]:
    """Found a real hospital and give what opens the stream of a round, as each message does.

    The request is the same each time, and so are the hospital's keys.

    Args:
        study: The study of the round.
    """
    request = Request(
        task="train", run="audit", study_digest=study.digest, study=study.canonical(), round=1
    )
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "site.toml").write_text(SITE)
        yield lambda: open_hospital(home).make_stream(request)


def check_replay(open_stream: Callable[[], RandomStream]) -> ReplayResult:
    """Open streams under equal conditions, and see whether any draw comes again.

    Any 8 bytes in common count: of a true stream's 512 words none ever meets another. A replay
    cannot show that a seed is short, only that it is not from the operating system.

    Args:
        open_stream: How a hospital opens its stream.
    """
    first, second = (_reopened(open_stream, seed) for seed in (7, 7))
    return ReplayResult(_share(first, second), _share(*_forked(open_stream())))


def _reopened(open_stream: Callable[[], RandomStream], seed: int) -> bytes:
    """Seed every global generator, open a stream and read; the generators' states are kept."""
    python, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return open_stream().read(BYTES)
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _forked(stream: RandomStream) -> tuple[bytes, bytes]:
    """Return what parent and child read next; nothing for a stream that refuses the fork."""
    stream.read(WORD)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, stream.read(BYTES))  # a pipe holds as much
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    return stream.read(BYTES), theirs


def _share(one: bytes, other: bytes) -> bool:
    """Return whether two readings have a word in common."""

    def words(data: bytes) -> set[bytes]:
        return {data[i : i + WORD] for i in range(0, len(data), WORD)}

    return bool(words(one) & words(other))
