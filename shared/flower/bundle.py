"""The code-free bundle: it names the sources a node runs, byte for byte the same everywhere.

It shows that coordinator and hospital have the same client and shared sources installed: it is
against accidents. It cannot show what a dishonest coordinator runs, who can send any bytes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

from shared.flower.accepted import EARLIER
from shared.protocol import PROTOCOL_VERSION

SOURCES = ("client", "shared")
"""Packages whose sources a bundle names. The server's are not among them: a release that changes
the server alone has the same bundle, and locks no hospital out."""

_NOT_NAMED = "shared/flower/accepted.py"


@cache
def bundle() -> bytes:
    """Return this installation's Flower App Bundle: a `pyproject.toml` and nothing else.

    It names components that live in the installed package, so no code travels. Entries are
    stored, not deflated, so that the bytes do not depend on the zlib in use.
    """
    project = f"""[project]
name = "consilium-fl"
version = "{PROTOCOL_VERSION}.0.0"
description = "Names the installed components of Consilium; holds no code."

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = ""

[tool.consilium]
sources = "{sources_digest(Path(__file__).parents[2])}"
""".encode()
    manifest = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("pyproject.toml", project), (".info/CONTENT", manifest.encode())):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def bundle_digest() -> str:
    """SHA-256 of this installation's bundle."""
    return hashlib.sha256(bundle()).hexdigest()


def is_accepted(content: bytes) -> bool:
    """Tell whether a node takes a bundle: its own, or one of a release listed as alike."""
    digest = hashlib.sha256(content).hexdigest()
    return digest == bundle_digest() or digest in EARLIER


def sources_digest(root: Path) -> str:
    """SHA-256 of the Python sources of `SOURCES` under a folder, in the order of their names.

    Made of bytes of files alone, so it does not depend on Python's version or the machine; an
    end of line is a line feed, however a tool has written it.

    Args:
        root: Where the packages are installed.
    """
    files = (path for package in SOURCES for path in (root / package).rglob("*.py"))
    named = sorted((path.relative_to(root).as_posix(), path) for path in files)
    digest = hashlib.sha256()
    for name, path in named:
        if name != _NOT_NAMED:
            content = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
