"""The report's two curves, AUC and privacy spent, made from a run's history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from server.charts import THIN, Axis, Chart, Line, Mark, Point, line_style, nice_ticks
from server.history import Estimate, History, RoundRecord

JOINT = "all hospitals"
INK = "currentColor"
WIDEST = 0.4
"""Width of an interval of an AUC beyond which its middle says nothing, and only jumps about."""

CROWD = 6
"""With more hospitals than this their curves are drawn paler, behind that of all together."""


def auc_chart(history: History) -> Chart | None:
    """Return the AUC after each round of training; None if none is known.

    A round's evaluation is of the model that went out in it, so round r is drawn at r - 1
    rounds of training. A curve is broken where a value is missing, or lost in the noise.
    """
    rounds = {record.rounds_before: record for record in history.rounds}
    evaluated = [rounds[x] for x in sorted(rounds)]
    joint = _pieces(evaluated, lambda record: record.auc)
    sites = _site_lines(history, lambda site: _pieces(evaluated, _site_auc(site)))
    if not joint and not sites:
        return None
    band = tuple(
        (record.rounds_before, record.auc.low, record.auc.high)
        for record in evaluated
        if _told(record.auc) and record.auc.low is not None and record.auc.high is not None
    )
    lines = (*sites, Line(JOINT, joint, INK, width=3.4, band=band))
    seen = [y for line in lines for _, y in _flat(line)] + [low for _, low, _ in band]
    low = min(0.4, *seen) if min(seen) < 0.5 else 0.5
    ticks = nice_ticks(low, 1.0)
    return Chart(
        name="auc",
        title="AUC after each round of training",
        summary=_auc_summary(lines),
        x=_rounds_axis(history, lines),
        y=Axis("AUC on held-out patients (0 to 1)", ticks[0], ticks[-1], ticks),
        lines=lines,
        marks=(Mark(0.5, "chance"),) if ticks[0] < 0.5 else (),
    )


def too_few(history: History) -> list[str]:
    """Return whose AUC is lost in the noise, in a round at least."""
    found = [JOINT] if any(lost_in_noise(record.auc) for record in history.rounds) else []
    for site in history.sites:
        seen = (record.sites[site].auc for record in history.rounds if site in record.sites)
        found += [site] if any(map(lost_in_noise, seen)) else []
    return found


def epsilon_chart(history: History) -> Chart | None:
    """Return the privacy each hospital had spent after each round; None if none is known."""
    lines = _site_lines(history, lambda site: _spending(history, site))
    if not lines:
        return None
    budgets = sorted(
        {s.budget for r in history.rounds for s in r.sites.values() if s.budget is not None}
    )
    top = max([y for line in lines for _, y in _flat(line)] + budgets)
    ticks = nice_ticks(0, max(1.06 * top, 1e-6))
    lines = _nested(lines)
    ends = ", ".join(f"{line.name} {_flat(line)[-1][1]:.3f}" for line in lines)
    return Chart(
        name="epsilon",
        title="Epsilon spent after each round",
        summary=f"Epsilon spent at the end: {ends}. "
        f"Budget: {', '.join(f'{b:g}' for b in budgets) or 'not known'}.",
        x=_rounds_axis(history, lines),
        y=Axis("epsilon spent per patient", 0.0, ticks[-1], ticks),
        lines=lines,
        marks=tuple(Mark(b, f"budget {b:g}", left=True) for b in budgets),
    )


def _told(auc: Estimate) -> bool:
    return auc.value is not None and not lost_in_noise(auc)


def lost_in_noise(auc: Estimate) -> bool:
    """Tell whether an AUC was measured on too few patients for the noise on its counts."""
    return auc.low is not None and auc.high is not None and auc.high - auc.low > WIDEST


def _site_lines(
    history: History, points: Callable[[str], tuple[tuple[Point, ...], ...]]
) -> tuple[Line, ...]:
    """Return the hospitals' thin lines; each keeps its colour, whoever else has none."""
    lines = []
    for index, site in enumerate(history.sites):
        if pieces := points(site):
            colour, dash = line_style(index)
            width = THIN if len(history.sites) <= CROWD else THIN / 2
            lines.append(Line(site, pieces, colour, dash, width))
    return tuple(lines)


def _site_auc(site: str) -> Callable[[RoundRecord], Estimate | None]:
    def auc(record: RoundRecord) -> Estimate | None:
        return record.sites[site].auc if site in record.sites else None

    return auc


def _pieces(
    rounds: Iterable[RoundRecord], auc: Callable[[RoundRecord], Estimate | None]
) -> tuple[tuple[Point, ...], ...]:
    pieces: list[list[Point]] = []
    for record in rounds:
        estimate, x = auc(record), record.rounds_before
        if estimate is None or estimate.value is None or not _told(estimate):
            continue
        if not pieces or x - pieces[-1][-1][0] > 1:
            pieces.append([])
        pieces[-1].append((x, estimate.value))
    return tuple(map(tuple, pieces))


def _spending(history: History, site: str) -> tuple[tuple[Point, ...], ...]:
    """Return one unbroken curve from nothing spent; a later line of a round replaces it."""
    spent = {
        record.rounds_after: record.sites[site].epsilon
        for record in history.rounds
        if site in record.sites and record.sites[site].epsilon is not None
    }
    points = [(float(x), y) for x, y in sorted(spent.items()) if y is not None]
    return (((0.0, 0.0), *points),) if points else ()


def _nested(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Draw earlier curves thicker, since hospitals often spend exactly the same."""
    if len(lines) > CROWD:
        return tuple(lines)
    step = 6.0 / len(lines)
    return tuple(
        replace(line, width=THIN + step * (len(lines) - 1 - index))
        for index, line in enumerate(lines)
    )


def _rounds_axis(history: History, lines: Sequence[Line]) -> Axis:
    last = max([history.study.federation.rounds, *(x for ln in lines for x, _ in _flat(ln))])
    ticks = tuple(t for t in nice_ticks(0, last, most=10, whole=True) if t <= last)
    return Axis("rounds of training done", 0, last, ticks)


def _auc_summary(lines: Sequence[Line]) -> str:
    ends = [(line.name, _flat(line)[0][1], _flat(line)[-1][1]) for line in lines if line.points]
    said = [f"{name} {first:.3f} at first, {last:.3f} at last" for name, first, last in ends]
    return f"AUC on held-out patients: {'; '.join(said)}."


def _flat(line: Line) -> list[Point]:
    return [point for piece in line.points for point in piece]
