"""The statement for the data-protection officer: one signed page on what privacy was spent."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)
from pydantic import BaseModel, ConfigDict, ValidationError

from client.site import Site
from client.spending import Account, PlanReport, SpendingReport
from shared.errors import SiteError

_STATEMENT = re.compile(
    r'<script type="application/json" id="statement">(.*?)</script>'
    r'.*?<code id="signature">([A-Za-z0-9+/=]*)</code>',
    re.DOTALL,
)


IMAGES_AS_PATIENTS = (
    "Images whose patient nobody names are each taken for a patient here "
    "(data.without_patient_id): two images of one person count as two patients, each protected by "
    "itself, and what they spend adds up for the person."
)
"""What a site says of its guarantee that takes images for patients."""


class Statement(BaseModel):
    """What is signed.

    Attributes:
        site: The hospital's name.
        time: UTC, ISO 8601.
        studies: Names of the studies by digest, as far as the site knows them.
        spending: The ledger's report.
        without_patient_id: What the site does, at that time, with images whose patient nobody
            names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str
    time: str
    studies: dict[str, str]
    spending: SpendingReport
    without_patient_id: Literal["refuse", "image-is-patient"]

    def canonical(self) -> str:
        """Return the signed text: JSON with sorted keys; `<` is escaped so that it fits HTML."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return text.replace("<", "\\u003c")


def make_statement(
    site: Site, spending: SpendingReport, studies: dict[str, str], now: datetime
) -> Statement:
    """Return the statement of a site.

    Args:
        site: The site.
        spending: From `spending_report`.
        studies: Name of each known study by digest.
        now: With its time zone.
    """
    time = now.astimezone(UTC).isoformat(timespec="seconds")
    return Statement(
        site=site.config.name,
        time=time,
        studies=studies,
        spending=spending,
        without_patient_id=site.config.data.without_patient_id,
    )


def sign_statement(statement: Statement, node_key: Path) -> str:
    """Return the statement as one self-contained page, signed with the node's key.

    ECDSA over P-384 with SHA-384, of the JSON embedded in the page, byte for byte.

    Args:
        statement: What to state.
        node_key: The node's private key file (OpenSSH EC P-384).

    Raises:
        SiteError: The key cannot be read or is of another kind.
    """
    try:
        key = load_ssh_private_key(node_key.read_bytes(), password=None)
    except (OSError, ValueError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise SiteError("cannot read the node's key", str(node_key), "Run `consilium site init`")
    text = statement.canonical()
    signature = base64.b64encode(key.sign(text.encode(), ECDSA(SHA384()))).decode()
    return _page(statement, text, signature)


def verify_statement(page: str, public_key: bytes) -> Statement:
    """Return the statement of a page after checking its signature.

    The tables a person reads are not signed, so the page must be the one the statement makes.

    Args:
        page: The HTML.
        public_key: The node's public key (`node.pub`, OpenSSH form).

    Raises:
        SiteError: The page is no statement, was changed, or another node signed it.
    """
    found = _STATEMENT.search(page)
    try:
        key = load_ssh_public_key(public_key)
        if found is None or not isinstance(key, EllipticCurvePublicKey):
            raise ValueError
        text, signature = found.groups()
        key.verify(base64.b64decode(signature), text.encode(), ECDSA(SHA384()))
        statement = Statement.model_validate_json(text)
        if _page(statement, text, signature) != page:
            raise ValueError
    except (InvalidSignature, ValidationError, ValueError):
        raise SiteError(
            "this is not a statement signed by that node, or it was changed",
            todo="Ask the hospital for the page and its node.pub anew",
        ) from None
    return statement


def _page(statement: Statement, text: str, signature: str) -> str:
    spending = statement.spending
    lifetime = [account for account in spending.accounts if not account.study]
    studies = [account for account in spending.accounts if account.study]
    images = statement.without_patient_id == "image-is-patient"
    unit = f'<p class="none">{IMAGES_AS_PATIENTS}</p>' if images else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Privacy statement of {html.escape(statement.site)}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --bad: #b00020 }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e9ef; --paper: #171b21; --line: #39424d; --bad: #ffb4ab }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }}
.wide {{ overflow-x: auto; margin: 1rem 0 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }}
th:first-child, td:first-child {{ text-align: left }}
.none {{ color: var(--bad); font-weight: 600 }}
code {{ word-break: break-all; font-size: .8rem }}
</style></head><body>
<h1>Privacy statement of {html.escape(statement.site)}</h1>
<p>{html.escape(statement.time)} (UTC). {spending.patients} patients have taken part in training or
evaluation; {spending.opted_out} have opted out. What they were charged by then stays counted.</p>
<p>The guarantee is differential privacy with the patient as the unit: what left this hospital
would have been almost the same without any one patient, all images included. Epsilon bounds
how much it can differ, except with a chance of delta. Who takes part in a study is charged all
of it at once, spare rounds included, whether or not they come; what was not used is free again
when the study is closed. "If replaced" is epsilon where a patient's data is replaced by other data,
and not by nothing. What can no longer be said of whom is counted for everyone: "all others"
are the patients no other line counts, those of the future among them.</p>
{unit}
<h2>For life, over all studies</h2>
<p>Whatever studies follow, and whoever chooses them after seeing the last, these patients keep this
epsilon: a study that has no room in what is left takes none of them. "Charged" is the part of the
budget that is gone.</p>
{_account_table(lifetime, {})}
<h2>By study</h2>
{_account_table(studies, statement.studies)}
<h2>Mechanisms</h2>
{_plan_table(spending.plans, statement.studies)}
<h2>Signature</h2>
<p>The ledger this was computed from has {spending.entries} entries and ends with
<code>{html.escape(spending.head)}</code>. The data of this page is signed with the node's key
(ECDSA P-384, SHA-384); <code>consilium site verify-statement</code> checks it.</p>
<script type="application/json" id="statement">{text}</script>
<p><code id="signature">{signature}</code></p>
</body></html>
"""


def _account_table(accounts: list[Account], names: dict[str, str]) -> str:
    head = ("Study", "Patients", "Epsilon", "If replaced", "Budget", "Charged", "Delta")
    rows = []
    for account in accounts:
        name = _name(account.study, names) if account.study else "all"
        epsilon = f"{account.epsilon:.2f}"
        if account.unprotected:
            what = ", ".join(account.unprotected)
            epsilon = f'<span class="none">no guarantee ({html.escape(what)})</span>'
        replaced = "" if account.replacement is None else f"{account.replacement:.2f}"
        used = f"{account.used:.0%}"
        budget, delta = f"{account.budget:g}", f"{account.delta:g}"
        rows.append((name, account.who, epsilon, replaced, budget, used, delta))
    return _table(head, rows)


def _plan_table(plans: tuple[PlanReport, ...], names: dict[str, str]) -> str:
    head = ("Study", "Purpose", "Noise", "Sampling rate", "Steps a use", "Used", "Most", "State")
    rows = []
    for plan in plans:
        noise = f"{plan.noise_multiplier:.4g}" if plan.noise_multiplier else "none"
        state = "closed" if plan.closed else "open"
        counts = (str(plan.steps), str(plan.used), str(plan.uses))
        rate = f"{plan.sampling_rate:g}"
        rows.append((_name(plan.study, names), plan.purpose, noise, rate, *counts, state))
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>\n{body}</table></div>'


def _name(digest: str, names: dict[str, str]) -> str:
    name = names.get(digest, "unknown study")
    return f"{html.escape(name)} <code>{html.escape(digest[:12])}</code>"
