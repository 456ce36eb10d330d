"""The report's tables: hospitals, rounds, final metrics, and what was set aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from server.charts import Line, line_style, sample
from server.history import Estimate, History, RoundRecord, SiteRound, number, words
from server.markup import Html, element, join, table
from shared.study import Study

T = TypeVar("T")

REFUSALS = {
    "study-not-approved": "nobody there has approved the study",
    "study-declined": "a person there has declined the study",
    "study-invalid": "the plan that arrived is not the approved one",
    "policy-epsilon": "its policy allows less epsilon",
    "policy-delta": "its policy asks for a smaller delta",
    "policy-rounds": "its policy allows fewer rounds a day",
    "policy-device": "its policy on devices or hours",
    "policy-evaluation": "its policy on evaluation",
    "budget-exhausted": "it has no round left in this study",
    "ledger-rollback": "its ledger is older than the server remembers",
    "ledger-invalid": "its ledger is damaged or cannot be written",
    "bundle-refused": "the program sent is not its own release",
    "message-invalid": "it could not read the message",
    "out-of-order": "the round is past the study's end, or it has not released the class counts "
    "the round needs",
    "site-unready": "its own disk, files or keys need looking after",
    "site-attention": "a person there must look at something; ask them",
    "internal-error": "an error in its software",
}
"""What the reason codes of the protocol mean, as said of a hospital."""

STATES = {
    "described": "described its data",
    "update": "took part",
    "evaluated": "evaluated",
    "refused": "refused",
    "failed": "failed",
    "late": "too late",
    "absent": "absent",
}

MEASURES = {
    "auc": "AUC (area under the ROC curve)",
    "average_precision": "Average precision",
    "sensitivity_at_95_specificity": "Sensitivity at 95 % specificity",
    "ece": "Expected calibration error",
    "brier": "Brier score",
    "accuracy": "Accuracy",
    "positives": "Patients with the scored class (estimated)",
    "negatives": "Patients without it (estimated)",
    "undetermined": "Classes that cannot be told from noise",
    "patients": "Patients",
}
COUNTS = frozenset({"positives", "negatives", "undetermined", "patients"})


def hospitals_table(history: History) -> Html:
    """Return one row a hospital: its share, its privacy and how it ended."""
    titles = (
        "Hospital",
        "Training patients, as declared",
        "Rounds taken part",
        "Epsilon spent",
        "Budget",
        "Delta",
        "Noise multiplier",
        "Own AUC",
        *(["Own AUC, fine-tuned"] if history.study.training.personal_rounds else []),
        "State at the end",
        "Last reason not to take part",
    )
    rows = [_hospital(history, index) for index in range(len(history.sites))]
    numeric = set(range(1, len(titles) - 2))
    return table("Each hospital's share and privacy, as the server saw it", titles, rows, numeric)


def rounds_table(history: History) -> Html:
    """Return one row a round: who was in, who was not, and why."""
    titles = ("Round", "AUC of the model sent out", "Took part", "Did not, and why", "Time")
    rows = {(r.closing, r.number): _round(r) for r in history.rounds}
    for event in history.events:
        started = (False, event.round or 0)
        if event.name == "round-started" and event.round and started not in rows:
            rows[started] = [str(event.round), "", "", "The round was not finished.", ""]
    caption = "Rounds, who was in each, and who was not"
    return table(caption, titles, [rows[key] for key in sorted(rows)], {1, 4})


def metrics_table(
    record: RoundRecord, test: Mapping[str, float | int | None], study: Study
) -> Html:
    """Return one row a measure: at the hospitals with its interval, and on the test set.

    Args:
        record: The round whose measures are shown.
        test: Measures on the test set.
        study: The plan.
    """
    metrics, personal = record.metrics, record.personal
    names = [n for n in MEASURES if n in metrics or n in test]
    names += [n for n in (*metrics, *test) if n not in MEASURES and not n.endswith(_ENDS)]
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("Measure", lambda n: _measure(n, study)),
        ("At the hospitals", lambda n: _shown(n, metrics[n].value) if n in metrics else ""),
        ("95 % interval", lambda n: _interval(n, metrics.get(n, Estimate()))),
    ]
    if personal:
        columns.append(("Fine-tuned at each hospital", lambda n: _with_ends(n, personal.get(n))))
    if test:
        columns.append(("On the test set", lambda n: _on_test(n, test)))
    rows = [[cell(name) for _, cell in columns] for name in dict.fromkeys(names)]
    titles = [title for title, _ in columns]
    numeric = set(range(1, len(titles)))
    return table("Final metrics of the released model", titles, rows, numeric)


def subgroups_table(record: RoundRecord, study: Study) -> Html:
    """Return one row a group of patients, with what can be told of it in spite of the noise."""
    titles = (
        "Group",
        _measure("positives", study),
        _measure("negatives", study),
        "AUC",
        "95 % interval",
        MEASURES["sensitivity_at_95_specificity"],
        MEASURES["ece"],
    )
    rows = [[_group(key), *_group_row(it)] for key, it in record.subgroups.items()]
    caption = "The released model by group of patients, all hospitals together"
    return table(caption, titles, rows, set(range(1, len(titles))))


GROUPS = {
    "sex:F": "women",
    "sex:M": "men",
    "sex:other": "other sex, or none stated",
    "age:unknown": "no age stated",
    "scanner:other": "other scanners, or none stated",
}
"""What subgroups are called where the key itself does not say it."""


def _group(key: str) -> str:
    grouping, _, cell = key.partition(":")
    plain = f"{cell} years" if grouping == "age" else f"{cell} scanners"
    return GROUPS.get(key, plain)


def _group_row(metrics: Mapping[str, Estimate]) -> list[str]:
    sizes = [_shown(n, metrics.get(n, Estimate()).value) for n in ("positives", "negatives")]
    auc = metrics.get("auc", Estimate())
    if auc.value is None:
        return [*sizes, "cannot be told from noise", "", "", ""]
    rest = [metrics.get(n, Estimate()) for n in ("sensitivity_at_95_specificity", "ece")]
    return [
        *sizes,
        f"{auc.value:.3f}",
        _interval("auc", auc),
        *(f"{it.value:.3f}" if it.value is not None else "not known" for it in rest),
    ]


def set_aside_table(local_reports: Mapping[str, Mapping[str, int]]) -> Html:
    """Return how many files or rows each hospital set aside, by reason."""
    sites = list(local_reports)
    reasons = sorted({reason for counts in local_reports.values() for reason in counts})
    if not reasons:
        return element("p", "Nothing was set aside.")
    counted = [(r, [local_reports[site].get(r, 0) for site in sites]) for r in reasons]
    rows = [
        (words(r).replace("-", " "), *(f"{n:,}" if n else "–" for n in counts))
        for r, counts in sorted(counted, key=lambda row: -sum(row[1]))
    ]
    totals = [f"{sum(local_reports[site].values()):,}" for site in sites]
    caption = "Files and rows of the labels table that were set aside, by reason"
    numeric = set(range(1, len(sites) + 1))
    return table(caption, ("Reason", *sites), [*rows, ("all", *totals)], numeric)


def duration(seconds: float | None) -> str:
    """Return seconds in the unit a reader would use."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_ENDS = ("_low", "_high")


def _hospital(history: History, index: int) -> list[str | Html]:
    name = history.sites[index]
    records = [(r, r.sites[name]) for r in history.rounds if name in r.sites]
    entries = [site for _, site in records]
    private = history.study.privacy.enabled
    noise = _latest(entries, lambda site: site.noise_multiplier)
    auc = _latest(entries, lambda site: site.auc.value)
    personal = _latest(entries, lambda site: site.personal_auc.value)
    return [
        element("span", Html(sample(Line(name, (), *line_style(index)))), name, class_="name"),
        _or_dash(_latest(entries, lambda site: site.patients or None), ",d"),
        str(sum(site.state == "update" for site in entries)),
        _or_dash(_latest(entries, lambda site: site.epsilon), ".3f") if private else _no_limit(),
        _or_dash(_latest(entries, lambda site: site.budget), "g") if private else "–",
        _power(_latest(entries, lambda site: site.delta)) if private else "–",
        _or_dash(noise, ".3f") if private else element("span", "none", class_="bad"),
        _or_dash(auc, ".3f"),
        *([_or_dash(personal, ".3f")] if history.study.training.personal_rounds else []),
        STATES.get(entries[-1].state, entries[-1].state) if entries else "never heard of",
        _last_reason(records),
    ]


def _no_limit() -> Html:
    return element("span", "no limit", class_="bad")


def _latest(entries: list[SiteRound], value: Callable[[SiteRound], T | None]) -> T | None:
    """Return the newest known value; the last rounds may not tell it."""
    return next((v for site in reversed(entries) if (v := value(site)) is not None), None)


def _last_reason(records: list[tuple[RoundRecord, SiteRound]]) -> str:
    for record, site in reversed(records):
        if site.reason:
            where = "closing" if record.closing else f"round {record.number}"
            return f"{where}: {_reason(site)}"
    return "–"


def _round(record: RoundRecord) -> list[str | Html]:
    took_part = [n for n, s in record.sites.items() if s.state in ("update", "evaluated")]
    others = [
        element("li", f"{name}: {_reason(site)}")
        for name, site in record.sites.items()
        if name not in took_part
    ]
    title = f"{record.number} (closing)" if record.closing else str(record.number)
    share = f"{len(took_part)} of {len(record.sites)}"
    names = [part for name in took_part for part in (", ", element("span", name, class_="name"))]
    return [
        title,
        _with_interval(record.auc),
        join([share, ": ", *names[1:]]) if took_part else share,
        element("ul", *others, class_="plain") if others else "–",
        duration(record.seconds),
    ]


def _reason(site: SiteRound) -> str:
    state = STATES.get(site.state, site.state)
    reason = REFUSALS.get(site.reason, site.reason)
    return f"{state}, {reason}" if reason else state


def _measure(name: str, study: Study) -> str:
    if name in ("positives", "negatives") and len(study.task.classes) == 2:
        scored = study.task.classes[study.task.positive_index]
        return f"Patients {'with' if name == 'positives' else 'without'} {scored} (estimated)"
    return MEASURES.get(name, words(name).replace("_", " "))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.0f}" if name in COUNTS else f"{value:.4f}"


def _interval(name: str, it: Estimate) -> str:
    if it.low is None or it.high is None:
        return ""
    return f"{_shown(name, it.low)} to {_shown(name, it.high)}"


def _on_test(name: str, test: Mapping[str, float | int | None]) -> str:
    return _shown(name, number(test[name])) if name in test else ""


def _with_ends(name: str, it: Estimate | None) -> str:
    ends = _interval(name, it) if it else ""
    return "" if it is None else _shown(name, it.value) + (f" ({ends})" if ends else "")


def _with_interval(auc: Estimate) -> str:
    if auc.value is None:
        return "not known"
    ends = "" if auc.low is None or auc.high is None else f" ({auc.low:.3f} to {auc.high:.3f})"
    return f"{auc.value:.3f}{ends}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _power(value: float | None) -> str:
    """Return a small number as a reader writes it: 1e-5 rather than 1e-05."""
    if value is None:
        return "–"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}" if value else "0"
