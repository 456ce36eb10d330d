"""The page of a report: sections around finished tables and pictures."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.markup import Html, element
from server.report_style import STYLE as SERVER_STYLE
from simulations.plots import Picture
from simulations.report_data import Book
from simulations.report_origin import failed_table, provenance_table
from simulations.report_sheet import Sheet, show
from simulations.report_ways import strategies_told
from simulations.report_words import about, caveats, overall, result


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one scenario.

    Attributes:
        scenario: Its name.
        federation: Pictures of who has what, what is missing and who took part.
        remarks: What needs no picture.
        results: Pictures of the results.
        tables: By title, in order.
    """

    scenario: str
    federation: Sequence[Picture]
    remarks: Sequence[str]
    results: Sequence[Picture]
    tables: Mapping[str, Sheet]


def page(book: Book, chapters: Sequence[Chapter], across: Sequence[Picture], all_: Sheet) -> str:
    """Return the page as HTML: self-contained, without scripts.

    Args:
        book: The results.
        chapters: One a scenario.
        across: Pictures over several scenarios.
        all_: The table of all scenarios.
    """
    title = _title(book)
    main = element(
        "main",
        element(
            "header",
            element("p", "Simulated federation: report", class_="kicker"),
            element("h1", title),
        ),
        _summary(book),
        *([_at_a_glance(chapters, across, all_)] if len(chapters) > 1 else []),
        *(_chapter(book, i, chapter) for i, chapter in enumerate(chapters)),
        *([_failed(book)] if book.unfinished() else []),
        _how_to_read(),
        _provenance(book),
    )
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', f'{title}: simulation report')}\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{main}\n</body>\n</html>\n"
    )


STYLE = (
    SERVER_STYLE
    + """
main { max-width: 1280px; }
h2 { overflow-wrap: anywhere; }
h3 { margin-top: 28px; }
.dense table { font-size: 13px; }
.dense th, .dense td { padding: 6px 10px 6px 0; }
.dense tbody td, .dense tbody th { white-space: nowrap; }
.dense thead th { font-size: 12.5px; }
.dense small { display: block; font-size: 11.5px; color: var(--soft); font-weight: 400; }
.dense caption { max-width: 110ch; }
.dense .good { color: #00674a; font-weight: 600; }
figure img { max-width: 100%; height: auto; display: block; }
.said li { margin: 5px 0; max-width: 90ch; }
.beware { border-left: 4px solid #E69F00; background: #fdf8ec; padding: 8px 20px; margin: 20px 0; }
.contents { columns: 2; padding-left: 20px; }
a { color: #005a8c; }
@media (max-width: 720px) { .contents { columns: 1; } }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  .dense table { font-size: 8.5pt; }
  .dense thead th, .dense small { font-size: 7.5pt; }
  .dense th, .dense td { padding-right: 7px; }
  .curves { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .beware { break-inside: avoid; }
  h3, caption, thead { break-after: avoid; }
  caption { break-inside: avoid; }
  tbody tr:first-child { break-before: avoid; }
  figure img { max-height: 165mm; }
}
"""
)


def _title(book: Book) -> str:
    names = book.scenarios
    return names[0] if len(names) == 1 else f"{len(names)} scenarios compared"


def _summary(book: Book) -> Html:
    few = len(book.scenarios) <= 3
    said = [
        part
        for name in (book.scenarios if few else ())
        for part in (
            *([element("h3", name)] if len(book.scenarios) > 1 else []),
            _points(result(book, name)),
        )
    ]
    if not few:
        each = "What came of each scenario is said at the head of its section."
        said = [_points([*overall(book), each])]
    return element(
        "section",
        element("h2", "Summary"),
        *(element("p", text) for text in about(book)),
        *said,
        element(
            "div",
            element("strong", "Before you believe it"),
            _points(caveats(book)),
            class_="beware",
        ),
    )


def _at_a_glance(chapters: Sequence[Chapter], across: Sequence[Picture], all_: Sheet) -> Html:
    links = [
        element("li", element("a", chapter.scenario, href=f"#scenario-{i + 1}"))
        for i, chapter in enumerate(chapters)
    ]
    return element(
        "section",
        element("h2", "All scenarios at a glance"),
        show(all_),
        _pictures(across),
        element("h3", "Sections"),
        element("ol", *links, class_="contents"),
    )


def _chapter(book: Book, index: int, chapter: Chapter) -> Html:
    tables = [
        part
        for title, sheet in chapter.tables.items()
        for part in (element("h3", title), show(sheet))
    ]
    said = [_points(result(book, chapter.scenario))] if len(book.scenarios) > 3 else []
    return element(
        "section",
        element("h2", chapter.scenario, id=f"scenario-{index + 1}"),
        *said,
        element("h3", "What is compared"),
        _terms(strategies_told(book, chapter.scenario)),
        *tables[:2],
        _pictures(chapter.results),
        _pictures(chapter.federation),
        *(element("p", text) for text in chapter.remarks),
        *tables[2:],
    )


def _pictures(pictures: Iterable[Picture]) -> Html:
    shown = [
        element(
            "figure",
            element("h3", picture.title),
            _image(picture),
            element("figcaption", picture.caption),
        )
        for picture in pictures
    ]
    return element("div", *shown, class_="curves") if shown else Html("")


def _image(picture: Picture) -> Html:
    data = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    # The one element here without an end tag.
    return Html(element("img", src=data, alt=picture.alt).removesuffix("</img>"))


def _failed(book: Book) -> Html:
    return element("section", element("h2", "Failed and unfinished"), show(failed_table(book), ""))


def _how_to_read() -> Html:
    return element("section", element("h2", "How to read this"), _terms(TERMS))


def _terms(explained: Iterable[tuple[str, str]]) -> Html:
    parts = [part for it, text in explained for part in (element("dt", it), element("dd", text))]
    return element("dl", *parts, class_="topics")


TERMS = (
    ("alone", "Each site trains by itself, with the same model and as many steps."),
    ("pooled", "All patients at one site: what federated learning could reach at best."),
    ("fedavg", "The plain way to federate: the mean of the updates, weighed by patients."),
    (
        "AUC",
        "Chance that a patient with the class gets a higher score than one without; 0.5 is "
        "guessing. Of several classes or findings the mean over them.",
    ),
    ("Balanced accuracy", "Mean over the classes of the part of their patients told right."),
    (
        "Average precision",
        "Area under precision against recall; guessing gives the part of patients with the class.",
    ),
    (
        "Calibration error",
        "Mean distance between the probability the model states and how often it is right; lower "
        "is better.",
    ),
    (
        "Own patients",
        "Those each site keeps from training. The mean and the worst are over sites; a small site "
        "counts as much as a large one.",
    ),
    (
        "Gap closed",
        "(strategy - fedavg) / (pooled - fedavg) of the AUCs, with Fieller's interval over seeds. "
        "Not defined where fedavg's distance to pooled cannot be told from zero.",
    ),
    (
        "Intervals",
        "95 %. Over seeds: what another partition and another start would change. Over patients: "
        "what another test set would change. Neither tells of other hospitals.",
    ),
    ("MB moved", "Weights sent to the sites and updates back, of a whole run."),
    ("Epsilon", "Privacy spent per patient over the whole study; smaller is more private."),
)


def _provenance(book: Book) -> Html:
    facts = (
        ("Command", [cell.command for cell in book.cells]),
        ("Release", [cell.code_version for cell in book.cells]),
        ("Sources (SHA-256)", [cell.code for cell in book.cells]),
        ("Machine", [cell.machine for cell in book.cells]),
    )
    told = [
        part
        for name, values in facts
        for part in (
            element("dt", name),
            *(element("dd", element("code", v)) for v in dict.fromkeys(values) if v),
        )
    ]
    plans = {cell.scenario: cell.scenario_text for cell in book.cells if cell.scenario_text}
    shown = [
        element("details", element("summary", f"Scenario {name}"), element("pre", _pretty(text)))
        for name, text in plans.items()
    ]
    made = (
        "Made by Consilium from results.sqlite, which holds every figure. Pictures are in figures/ "
        "as PNG and SVG, tables in tables/ as CSV. This page loads nothing."
    )
    return element(
        "section",
        element("h2", "Provenance"),
        element("dl", *told, class_="topics"),
        show(provenance_table(book)),
        *shown,
        element("p", made, class_="soft"),
    )


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _points(sentences: Iterable[str]) -> Html:
    return element("ul", *(element("li", text) for text in sentences), class_="said")
