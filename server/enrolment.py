"""Which hospitals may connect: enrol, revoke, rename, and give one a new key."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from server.countersign import Countersigner, HeadBook
from server.home import EnrolledSite, ServerHome
from server.link import control
from server.standing import open_runs, sites_of
from shared.errors import CoordinatorError
from shared.names import same_name, valid_name
from shared.pki import name_of_key


def enrol(home: ServerHome, name: str, key: Path) -> EnrolledSite:
    """Let a hospital's node connect; one that was revoked may be enrolled again.

    Args:
        home: The server's home.
        name: The hospital's name, which must be the one in the key.
        key: The node.pub it sent.

    Raises:
        CoordinatorError: The key is none or of another name, or key or name are enrolled
            already; or the SuperLink refuses.
    """
    public = _public_key(key)
    name = _checked(name, public, key)
    for site in home.sites():
        if same_name(site.name, name):
            raise CoordinatorError(
                "a site of this name is enrolled already",
                site.name,
                "For another key of the same hospital: `consilium server new-key`",
            )
        if _bare(site.public_key.encode()) == _bare(public):
            raise CoordinatorError(
                f"this key is enrolled already, as {site.name}",
                str(key),
                "For another name of the same hospital: `consilium server rename`",
            )
    node = control(home).register(public, name, home.path)
    return home.add_site(name, node, public.decode().strip())


def revoke(home: ServerHome, name: str) -> None:
    """Take a hospital's node off.

    What is known of its ledger stays, for the day it is enrolled again.
    """
    site = home.site(name)
    control(home).unregister(site.node)
    home.remove_site(site.name)


def rename(home: ServerHome, old: str, new: str) -> None:
    """Give a hospital another name; what is known of its ledger goes along.

    Raises:
        CoordinatorError: The new name is none or is taken, or the hospital is in an open run.
    """
    site, new = home.site(old), _name(new)
    for other in home.sites():
        if other.name != site.name and same_name(other.name, new):
            raise CoordinatorError("a site of this name is enrolled already", other.name)
    for run in open_runs(home):
        if site.name in sites_of(home.run_folder(run)).values():
            raise CoordinatorError(
                f"{site.name} takes part in a run that is not over", run, "Rename it after that"
            )
    HeadBook(home.heads, Countersigner.open(home.path)).rename(site.name, new)
    home.change_site(site.name, site.model_copy(update={"name": new}))


def renew_key(home: ServerHome, name: str, key: Path) -> EnrolledSite:
    """Let a hospital connect with another key, and with the old one no longer.

    Raises:
        CoordinatorError: As `enrol`.
    """
    site, public = home.site(name), _public_key(key)
    _checked(name, public, key)
    if _bare(site.public_key.encode()) == _bare(public):
        raise CoordinatorError("this is the key it has", str(key), "Nothing is to be done")
    node = control(home).register(public, site.name, home.path)
    control(home).unregister(site.node)
    after = site.model_copy(update={"node": node, "public_key": public.decode().strip()})
    home.change_site(site.name, after)
    return after


def _checked(name: str, public: bytes, key: Path) -> str:
    """Return the name, if it is also the one the key came with."""
    name, own = _name(name), name_of_key(public)
    if not own:
        raise CoordinatorError(
            "this key does not say which hospital it is of",
            str(key),
            "Ask the hospital for its node.pub as `consilium site init` wrote it",
        )
    if own != name:
        raise CoordinatorError(
            f"the key is of {own!r}, not of {name!r}",
            str(key),
            "Enrol it under the name in the hospital's site.toml, letter by letter, or have it "
            "changed there and node.pub sent again",
        )
    return name


def _name(name: str) -> str:
    try:
        return valid_name(name)
    except ValueError as error:
        raise CoordinatorError("this cannot be a hospital's name", name, f"It {error}") from None


def _bare(public: bytes) -> list[bytes]:
    """Return the key of an OpenSSH line without the name behind it."""
    return public.split()[:2]


def _public_key(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        load_ssh_public_key(content)
    except OSError as error:
        raise CoordinatorError(f"cannot read the key: {error.strerror}", str(path)) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CoordinatorError(
            "this is not a node's public key", str(path), "Ask the hospital for its node.pub"
        ) from None
    return content
