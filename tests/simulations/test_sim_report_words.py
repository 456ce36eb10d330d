"""What a report says in words: the winner, the caveats, and what is not finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simulation_kit import MadeUp, Tags, cell_of, outcome, write_results

from simulations.report import write_report
from simulations.report_data import Key, read_book
from simulations.report_stats import difference
from simulations.report_words import about, caveats, overall, result
from simulations.results import Results


def test_the_summary_names_the_winner_only_where_it_is_clear(tmp_path: Path) -> None:
    made_up = MadeUp("two", ("alone", "pooled", "fedavg", "scaffold"), seeds=4, sites=3, rounds=2)
    even = MadeUp("even", ("alone", "pooled", "fedavg", "fedprox"), seeds=4, sites=3, rounds=2)
    book = read_book(write_results(tmp_path, [made_up, even]))
    said = " ".join(result(book, "two"))
    assert "scaffold wins" in said
    assert "% of fedavg's gap to pooled data (95 % interval" in said
    assert "There is no clear winner" in " ".join(result(book, "even"))
    assert "scaffold in 1" in overall(book)[0]
    assert "no strategy clearly in 1" in overall(book)[0]
    assert "2 scenarios" in about(book)[0]
    lead = difference(
        book.figures[Key("even", "fedprox")], book.figures[Key("even", "fedavg")]
    )  # fmt: skip
    assert lead is not None
    assert lead.verdict == "unclear"


def test_every_caveat_is_said_where_it_holds_and_only_there(tmp_path: Path) -> None:
    clean = MadeUp("clean", ("alone", "pooled", "fedavg"), seeds=5, sites=2, rounds=1)
    said = " ".join(caveats(read_book(write_results(tmp_path / "1", [clean]))))
    assert "noise of private cells" not in said
    assert "There is one seed" not in said
    assert "gave no figures" not in said
    assert "chosen by the test set" not in said
    private = replace(clean, epsilon=3.0, seeds=1)
    said = " ".join(caveats(read_book(write_results(tmp_path / "2", [private]))))
    assert "The noise of private cells came from their seeds" in said
    assert "trained without noise" not in said
    assert "There is one seed" in said
    broken = replace(clean, failed=(("fedavg", 1), ("fedavg", 2)))
    said = " ".join(caveats(read_book(write_results(tmp_path / "3", [broken]))))
    assert "2 cells of 15 gave no figures (2 failed)" in said


def test_a_cell_that_was_never_finished_is_listed(tmp_path: Path) -> None:
    made_up = MadeUp("killed", ("fedavg",), seeds=2, sites=2, rounds=1)
    cells = [cell_of(made_up, "fedavg", seed) for seed in range(2)]
    with Results(tmp_path, create=True) as results:
        results.plan(cells)
        results.store(outcome(made_up, cells[0]))
        results.note(replace(cells[1], state="running"))
    text = Tags(write_report(tmp_path).read_text()).text
    assert "1 cell of 2 gave no figures (0 failed)" in text
    assert "it was not finished" in text
