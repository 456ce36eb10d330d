"""Time as the server sees it, passed in so that hours of waiting can be tested in no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """Three ways to meet time; the defaults are the machine's.

    Attributes:
        monotonic: Seconds since some fixed moment, never set back.
        sleep: Wait for a number of seconds.
        now: The date and time in UTC, for people to read.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = _utc_now
