"""The bytes between a site's process and its decoding process."""

from __future__ import annotations

import struct

READY = b"R"
"""Sent once by the decoding process when its limits are set."""

HEADER = struct.Struct("<HHI")
"""Lengths in bytes of reason, patient id, and cells and pixels (little-endian float32)."""

MAX_TEXT = 1024
"""Longest patient id, in bytes of UTF-8."""
