"""The code-free bundle: what a run names, byte for byte the same for everyone on a release."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.metadata import version


def bundle() -> bytes:
    """Return this release's Flower App Bundle: a `pyproject.toml` and nothing else.

    It names components that live in the installed package, so no code travels. Entries are
    stored, not deflated, so that the bytes do not depend on the zlib in use.
    """
    project = f"""[project]
name = "consilium-fl"
version = "{version("consilium-fl")}"
description = "Names the installed components of Consilium; holds no code."

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = ""
""".encode()
    manifest = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("pyproject.toml", project), (".info/CONTENT", manifest.encode())):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def bundle_digest() -> str:
    """SHA-256 of this release's bundle: the only one a node of this release accepts."""
    return hashlib.sha256(bundle()).hexdigest()
