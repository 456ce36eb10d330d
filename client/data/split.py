"""Which patients are held out: decided by each patient's id and by a key that stays at the site."""

from __future__ import annotations

import hmac

CONTEXT = b"consilium/split/2\0"


def is_held_out(key: bytes, patient_id: str, fraction: float) -> bool:
    """Whether a patient is kept for evaluation and never trained on.

    The first 64 bits of HMAC-SHA256(key, id), read as a number in [0, 1), are compared with the
    fraction. No other patient has a part in it, so adding one moves nobody, and who is held out
    of a fraction is held out of every larger one. Whoever lacks the key cannot tell who is held
    out, nor choose a fraction that parts two patients.

    Args:
        key: The site's split key, 32 bytes; sites with the same one, by hand, split alike.
        patient_id: The id as the hospital writes it.
        fraction: Part of the patients to hold out, in [0, 1].
    """
    message = CONTEXT + patient_id.encode("utf-8", "surrogateescape")
    digest = hmac.digest(key, message, "sha256")
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
