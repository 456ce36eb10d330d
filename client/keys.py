"""The node's key pair: its public half says whose it is, and it can be replaced."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from client.site import Site
from client.vault import write_atomic
from shared import pki
from shared.errors import SiteError


def keep_name_with_key(site: Site) -> bool:
    """Write the site's name behind its public key if it has changed; return whether it had.

    Raises:
        SiteError: The public key cannot be read or written.
    """
    path = site.home / "node.pub"
    try:
        before = path.read_bytes()
    except OSError as error:
        raise SiteError(f"cannot read the public key: {error.strerror}", str(path)) from None
    if pki.name_of_key(before) == site.config.name:
        return False
    key = b" ".join(before.split()[:2])
    write_atomic(path, key + f" {site.config.name}\n".encode())
    return True


def renew_key(site: Site) -> Path:
    """Give the node a new key pair; the old one stays as `node.key.old` and `node.pub.old`.

    Statements signed before are checked with the old public key.

    Returns:
        The new public key, for the coordinator.

    Raises:
        SiteError: The home cannot be written.
    """
    home = site.home
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=".key-") as folder:
            pki.create_node_key(Path(folder), site.config.name)
            for name in ("node.pub", "node.key"):
                if (home / name).exists():
                    shutil.copy2(home / name, home / f"{name}.old")
                (Path(folder) / name).replace(home / name)
    except OSError as error:
        raise SiteError(f"cannot write the new key: {error.strerror}", str(home)) from None
    return home / "node.pub"
