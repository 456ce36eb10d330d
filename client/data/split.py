"""Which patients are held out: decided by each patient's id alone, the same everywhere."""

from __future__ import annotations

import hashlib

SALT = b"consilium/split/1\0"
"""Public and fixed, so that every site and every run agrees."""


def is_held_out(patient_id: str, fraction: float) -> bool:
    """Whether a patient is kept for evaluation and never trained on.

    The first 64 bits of SHA-256(salt, id), read as a number in [0, 1), are compared with the
    fraction. No other patient has a part in it, so adding one moves nobody; and a patient known
    under one id at two hospitals is on the same side at both.

    Args:
        patient_id: The id as the hospital writes it.
        fraction: Part of the patients to hold out, in [0, 1].
    """
    digest = hashlib.sha256(SALT + patient_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
