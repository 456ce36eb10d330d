"""The report of a run: one self-contained page that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from server.charts import Chart, draw, sample
from server.files import write_atomically
from server.history import Estimate, History, RoundRecord, number, read_history
from server.markup import Html, element, join
from server.report_curves import auc_chart, epsilon_chart, lost_in_noise, too_few
from server.report_style import STYLE
from server.report_tables import (
    duration,
    hospitals_table,
    metrics_table,
    rounds_table,
    set_aside_table,
    subgroups_table,
)
from shared.explain import NO_PRIVACY, study_topics
from shared.explain_remedies import remedies
from shared.study import Study

TestResult = Mapping[str, float | int | None]
"""Measures on the test set: `auc`, `accuracy`, `patients`, and others, by name."""


def write_report(
    run_dir: Path,
    out: Path,
    *,
    local_reports: dict[str, dict[str, int]] | None = None,
    test: TestResult | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page; an older one is replaced.

    Args:
        run_dir: The run's folder; the run may still be going on.
        out: The page to write.
        local_reports: Site to reason to how many files it set aside. Only a demo on one machine
            can read these; the page says so.
        test: Measures on data no hospital has seen.
        notes: Remarks to show at the top, such as where the images come from.

    Raises:
        CoordinatorError: `run_dir` is no run's folder, or the page cannot be written.
        StudyError: The run's plan is not valid.
    """
    page = report_page(read_history(run_dir), local_reports, test or {}, notes)
    write_atomically(out, page.encode("utf-8", "replace"))


def report_page(
    history: History,
    local_reports: Mapping[str, Mapping[str, int]] | None,
    test: TestResult,
    notes: Sequence[str],
) -> str:
    """Return the page as HTML; see `write_report`."""
    main = element(
        "main",
        _head(history),
        *([_alarm()] if not history.study.privacy.enabled else []),
        _notes(history, notes),
        _figures(history, test),
        _curves(history),
        _section("Hospitals", hospitals_table(history)),
        _section("Rounds", rounds_table(history)),
        _section("Final metrics", *_metrics(history, test)),
        *_subgroups(history),
        _section("The study in plain words", _topics(history)),
        _section("What was set aside, and why", *_set_aside(local_reports)),
        _foot(history),
    )
    # Nothing may be fetched and no script may run, even if a name in here were hostile; the one
    # style sheet is allowed by its hash.
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', f'{history.study.name}: report')}\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{main}\n</body>\n</html>\n"
    )


def _head(history: History) -> Html:
    study = history.study
    return element(
        "header",
        element("p", "Federated study: report", class_="kicker"),
        element("h1", study.name),
        *([element("p", study.description)] if study.description else []),
        element("p", f"Remedies: {_remedies(study)}."),
        element("p", _status(history), class_="soft"),
    )


def _remedies(study: Study) -> str:
    names = [remedy.name for remedy in remedies(study)]
    return ", ".join(names) if names else "none, updates are averaged as they are"


def _status(history: History) -> str:
    ends = [e for e in history.events if e.name in ("run-started", "run-finished", "run-failed")]
    times = [event.time for event in history.events if event.seconds is not None]
    span = f"{_moment(times[0])} to {_moment(times[-1])}. " if times else ""
    if not ends:
        return f"{span}The run has not begun."
    if ends[-1].name == "run-failed":
        return f"{span}The run failed: {ends[-1].detail}"
    finished = ends[-1].name == "run-finished"
    return f"{span}{'The run is finished.' if finished else 'The run is not finished.'}"


def _moment(time: str) -> str:
    moment = datetime.fromisoformat(time)
    return f"{moment.day} {moment:%B %Y, %H:%M}{' UTC' if not moment.utcoffset() else ''}"


def _alarm() -> Html:
    title = element("strong", "Trained without differential privacy")
    return element("div", element("p", title, NO_PRIVACY), class_="alarm", role="alert")


def _notes(history: History, notes: Sequence[str]) -> Html:
    damaged = (
        [f"{history.unreadable} lines of the run's records could not be read and are missing here."]
        if history.unreadable
        else []
    )
    return join(element("p", note) for note in [*notes, *damaged])


def _figures(history: History, test: TestResult) -> Html:
    """Return the few numbers a reader wants first."""
    trained = [record for record in history.rounds if not record.closing]
    final = history.rounds[-1].auc if history.rounds else Estimate()
    test_auc = number(test.get("auc"))
    seconds = [record.seconds for record in history.rounds if record.seconds is not None]
    parts = [
        ("Rounds", f"{len(trained)} of {history.study.federation.rounds}", _took(sum(seconds))),
        ("Hospitals", str(len(history.sites)), _shares(history)),
        ("AUC at the hospitals", _value(final.value), _range(final)),
        _spent(history),
    ]
    if test_auc is not None:
        patients = number(test.get("patients"))
        seen = "data" if patients is None else f"{patients:g} patients"
        parts.insert(0, ("Test AUC", f"{test_auc:.3f}", f"on {seen} no hospital had"))
    return element("dl", *(_figure(*part) for part in parts), class_="figures")


def _figure(title: str, value: str, note: str) -> Html:
    return element(
        "div",
        element("dt", title),
        element("dd", value, class_="value"),
        element("dd", note, class_="note"),
    )


def _took(seconds: float) -> str:
    return f"took {duration(seconds)}" if seconds else ""


def _shares(history: History) -> str:
    took_part = {
        name
        for record in history.rounds
        for name, site in record.sites.items()
        if site.state == "update"
    }
    return f"{len(took_part)} took part in training"


def _spent(history: History) -> tuple[str, str, str]:
    if not history.study.privacy.enabled:
        return "Privacy spent", "no limit", "training had no noise"
    spent = [
        site.epsilon
        for record in history.rounds
        for site in record.sites.values()
        if site.epsilon is not None
    ]
    note = f"most at a hospital; the study allows {history.study.privacy.epsilon:g}"
    return "Epsilon spent", f"{max(spent):.2f}" if spent else "not known", note


def _value(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _range(auc: Estimate) -> str:
    if lost_in_noise(auc):
        return "too few patients for the noise"
    if auc.value is None or auc.low is None or auc.high is None:
        return "on their held-out patients"
    return f"95 % interval {auc.low:.3f} to {auc.high:.3f}"


def _section(title: str, *content: Html) -> Html:
    return element("section", element("h2", title), *content)


def _curves(history: History) -> Html:
    closed = bool(history.rounds) and history.rounds[-1].closing
    caption = AUC_CAPTION + (" The last point is the released model." if closed else "")
    few = too_few(history)
    if few:
        caption += f" Too few patients for the noise, so not drawn there: {', '.join(few)}."
    auc = _figure_of(auc_chart(history), "AUC", caption, TOO_FEW if few else NOTHING)
    if history.study.privacy.enabled:
        spent = _figure_of(epsilon_chart(history), "Privacy spent", EPSILON_CAPTION)
    else:
        none = "There is no curve: training without noise has no bound on epsilon."
        spent = element("figure", element("h3", "Privacy spent"), element("p", none, class_="bad"))
    return _section("Curves", element("div", auc, spent, class_="curves"))


NOTHING = "Nothing is known yet."
TOO_FEW = "Too few held-out patients for the noise: the AUC cannot be told from chance."
AUC_CAPTION = (
    "Evaluated on patients held out at the hospitals, from noised counts of their scores. The band "
    "is the 95 % interval of all hospitals together and includes that noise."
)
EPSILON_CAPTION = (
    "What each hospital has spent of its budget in this study, per patient; smaller is stronger "
    "protection. Hospitals that spend the same lie in one line. Patients in training and held-out "
    "patients have separate accounts; the larger is shown."
)


def _figure_of(chart: Chart | None, title: str, caption: str, nothing: str = NOTHING) -> Html:
    if chart is None:
        empty = element("p", nothing, class_="soft")
        return element("figure", element("h3", title), empty)
    shown = sorted((line for line in chart.lines if line.points), key=lambda line: -line.width)
    legend = [element("li", Html(sample(line)), line.name) for line in shown]
    return element(
        "figure",
        element("h3", title),
        Html(draw(chart)),
        element("ul", *legend, class_="legend"),
        element("figcaption", caption),
    )


def _metrics(history: History, test: TestResult) -> list[Html]:
    if not history.rounds and not test:
        return [element("p", "No round has finished yet.", class_="soft")]
    last = history.rounds[-1] if history.rounds else None
    of = "the closing evaluation" if last and last.closing else "the last finished round"
    about = (
        f"At the hospitals: {of}, all hospitals' held-out patients together. Intervals include "
        "the choice of patients and the noise added for privacy."
    )
    table = metrics_table(last or RoundRecord(0), test, history.study)
    personal = element("p", PERSONAL_MODELS) if last and last.personal else Html("")
    return [element("p", about), table, personal]


PERSONAL_MODELS = (
    "Fine-tuned at each hospital: each patient is scored by the model that this patient's hospital "
    "fine-tuned and keeps, and all scores are taken together."
)


def _subgroups(history: History) -> list[Html]:
    """Return the section on groups of patients, in studies that ask for them."""
    last = history.rounds[-1] if history.rounds else None
    if not history.study.privacy.subgroups:
        return []
    if last is None or not last.subgroups:
        return [_section("Groups of patients", element("p", NO_SUBGROUPS))]
    about = element("p", SUBGROUPS)
    return [_section("Groups of patients", about, subgroups_table(last, history.study))]


NO_SUBGROUPS = (
    "Groups are evaluated once, after the last round. No hospital has sent any counts of them yet."
)
SUBGROUPS = (
    "From the closing evaluation, whose counts were noised and split by group. Intervals include "
    "that noise, which is the same for a group of few patients as for one of many: where it hides "
    "the patients, nothing is said. A hospital may keep these counts to itself."
)


def _topics(history: History) -> Html:
    parts = [
        part
        for topic, text in study_topics(history.study)
        for part in (element("dt", topic), element("dd", text[:1].upper() + text[1:]))
    ]
    return element("dl", *parts, class_="topics")


def _set_aside(local_reports: Mapping[str, Mapping[str, int]] | None) -> list[Html]:
    if local_reports is None:
        unknown = (
            "Each hospital counts and lists the files it set aside, with the reason, in its own "
            "folder. These lists are never sent, so this page cannot show them."
        )
        return [element("p", unknown)]
    source = (
        "These counts were read from the hospitals' own folders, which is possible only because "
        "all of them are on this machine. They were never sent: in a real federation only the "
        "hospital itself sees them."
    )
    return [element("p", source), set_aside_table(local_reports)]


def _foot(history: History) -> Html:
    plan = json.dumps(history.study.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return element(
        "footer",
        element("p", "Study digest, which the hospitals approved: ", _code(history.study.digest)),
        element("details", element("summary", "The whole plan"), element("pre", plan)),
        element("p", "Made by Consilium. This page holds everything it shows and loads nothing."),
    )


def _code(text: str) -> Html:
    return element("code", text)
