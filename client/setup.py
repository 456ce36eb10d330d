"""Setting up a site: its home folder, its keys, and a `site.toml` a person can read and change."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from client.approvals import Approvals
from client.site import Compute, Policy, Section, Site, load_site
from client.vault import Vault
from shared import pki
from shared.errors import SiteError
from shared.folders import made_whole
from shared.invitation import Invitation


def create_site(
    home: Path,
    name: str,
    invitation: Invitation,
    images: Path | None = None,
    labels: Path | None = None,
    *,
    table: Path | None = None,
    columns: dict[str, str] | None = None,
    values: dict[str, str] | None = None,
    without_patient_id: str = "refuse",
    policy: Mapping[str, object] | None = None,
    compute: Mapping[str, object] | None = None,
) -> Site:
    """Make a site's home: node key, vault key, the coordinator's public files, `site.toml`.

    Args:
        home: New or empty folder; becomes mode 0700.
        name: The hospital's name as others see it.
        invitation: From the coordinator.
        images: Folder of DICOM files, for studies of images.
        labels: The labels table (CSV), which belongs to them.
        table: The table of patients (CSV), for studies of a table.
        columns: Names of the table's columns, where they differ from file, patient, label.
        values: The table's label values and the study's classes they mean.
        without_patient_id: `refuse` or `image-is-patient`.
        policy: Settings of `[policy]` that differ from the defaults.
        compute: Settings of `[compute]` that differ from the defaults.

    Returns:
        The configured site.

    Raises:
        SiteError: The folder holds a site already, cannot be written, or a value is wrong; or
            neither images and labels nor a table are given.
    """
    if (images is None) != (labels is None) or (images is None and table is None):
        raise SiteError(
            "a site needs data: a folder of images with a labels table, or a table of patients",
            str(home),
            "Give --images and --labels, or --table, or all three",
        )
    if (home / "site.toml").exists():
        raise SiteError("there is a site in this folder already", str(home), "Use another --home")
    try:
        text = _site_toml(
            unicodedata.normalize("NFC", name),
            invitation.server,
            {"images": images, "labels": labels, "table": table},
            columns or {},
            values or {},
            without_patient_id,
            policy or {},
            compute or {},
        )
        with made_whole(home) as draft:
            (draft / "site.toml").write_text(text, encoding="utf-8")
            load_site(draft)  # before anything is made from it
            pki.create_node_key(draft, unicodedata.normalize("NFC", name))
            Vault.open(draft / "vault.key")
            (draft / "ca.pem").write_text(invitation.ca)
            (draft / "server.pub").write_text(invitation.signing_key)
    except OSError as error:
        raise SiteError(f"cannot write the site's home: {error.strerror}", str(home)) from None
    site = load_site(home)
    Approvals(site).open_split_key()
    return site


def _site_toml(
    name: str,
    server: str,
    sources: Mapping[str, Path | None],
    columns: dict[str, str],
    values: dict[str, str],
    without_patient_id: str,
    policy: Mapping[str, object],
    compute: Mapping[str, object],
) -> str:
    return f"""# Settings of this hospital's node. [policy] outranks any setting of the server.
name = {_toml(name)}

[server]
address = {_toml(server)}
ca = "ca.pem"               # the coordinator's certificate authority
signing_key = "server.pub"  # the key the coordinator confirms the privacy ledger with

[data]
{_lines({name: str(path.resolve()) for name, path in sources.items() if path})}
without_patient_id = {_toml(without_patient_id)}  # or "image-is-patient"

[data.columns]              # names of the columns in the table
{_lines({"file": "file", "patient": "patient", "label": "label", **columns})}

[data.values]               # label value in the table = class in the study
{_lines(values)}

[policy]                    # lines behind a # show the defaults
{_settings(Policy, policy)}

[compute]
{_settings(Compute, compute)}
"""


def _lines(values: Mapping[str, object]) -> str:
    return "\n".join(f"{_key(key)} = {_toml(value)}" for key, value in values.items())


def _settings(section: type[Section], given: Mapping[str, object]) -> str:
    """Return every setting of a section: those given, and the defaults as comments."""
    lines = []
    for name, field in section.model_fields.items():
        value = given.get(name, field.default)
        sign = "" if name in given else "# "
        meaning = f"  # {field.description}" if field.description else ""
        shown = '"2030-12-31"' if value is None else _toml(value)
        lines.append(f"{sign}{name} = {shown}{meaning}")
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: object) -> str:
    # JSON's strings, numbers and booleans are valid TOML.
    return json.dumps(value, ensure_ascii=False)
