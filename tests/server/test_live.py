"""The live view: what each event changes, what is drawn, and how growing files are followed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from server.history import event, round_record
from server.live import LiveView, Tail, render
from server.live_state import State
from shared.study import Study, parse_study

NAMES = ("Ashford", "Brook", "Castle")
NOON = "2026-11-22T12:00:{:02d}+00:00"
NOON_SECONDS = 1795348800.0


@pytest.fixture
def study() -> Study:
    return make_study()


def make_study(private: bool = True) -> Study:
    return parse_study(
        {
            "name": "lungs",
            "task": {"classes": ["clear", "opaque"]},
            "privacy": {"enabled": private},
            "federation": {"rounds": 4},
        },
        "test",
    )


def happens(state: State, name: str, second: int = 0, **fields: Any) -> State:
    return state.apply(event({"event": name, "time": NOON.format(second), **fields}))


def finished(number: int, seconds: float = 20.0, **sites: dict[str, Any]) -> dict[str, Any]:
    return {
        "round": number, "seconds": seconds, "auc": 0.75, "auc_low": 0.625, "auc_high": 0.875,
        "sites": sites,
    }  # fmt: skip


def after(state: State, line: dict[str, Any]) -> State:
    record = round_record(line)
    assert record is not None
    return state.record(record)


def drawn(state: State, second: float = 0.0) -> str:
    text = io.StringIO()
    Console(file=text, width=120, highlight=False).print(render(state, NOON_SECONDS + second))
    return text.getvalue()


def test_each_hospital_goes_from_waiting_to_its_own_end(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "round-started", round=1)
    assert {s.doing for s in state.hospitals.values()} == {"waiting"}
    for name in NAMES:
        state = happens(state, "site-sent", round=1, site=name)
    assert {s.doing for s in state.hospitals.values()} == {"training"}
    state = happens(state, "site-replied", 9, round=1, site="Ashford", epsilon=1.25)
    state = happens(state, "site-refused", 9, round=1, site="Brook", code="study-not-approved")
    state = happens(state, "update-rejected", 9, round=1, site="Castle", reason="not finite")
    assert [state.hospitals[name].doing for name in NAMES] == ["done", "refused", "failed"]
    assert [state.hospitals[name].why for name in NAMES] == ["", "study-not-approved", "not finite"]
    assert state.hospitals["Ashford"].took == 9

    text = drawn(state)
    rows = {name: next(line for line in text.splitlines() if name in line) for name in NAMES}
    assert "1.25 of 8" in rows["Ashford"]
    assert "study-not-approved" in rows["Brook"]
    assert "not finite" in rows["Castle"]
    assert "round 1 of 4" in text

    state = happens(state, "round-started", 20, round=2)
    doing = {name: (site.doing, site.why) for name, site in state.hospitals.items()}
    # One that refused sits out, asked again or not, until it says otherwise.
    assert doing["Brook"] == ("refused", "study-not-approved")
    assert doing["Ashford"] == doing["Castle"] == ("waiting", "")
    state = happens(state, "site-sent", 21, round=2, site="Brook")
    assert state.hospitals["Brook"].doing == "refused"
    state = happens(state, "site-replied", 25, round=2, site="Brook")
    assert state.hospitals["Brook"].doing == "done"
    assert state.hospitals["Ashford"].epsilon == 1.25


def test_describing_comes_before_the_rounds_and_tells_nothing_of_their_length(
    study: Study,
) -> None:
    state = happens(State.begin(study, NAMES), "site-sent", 0, site="Ashford")
    assert "describing" in drawn(state)
    state = happens(state, "site-replied", 9, site="Ashford", epsilon=0.5)
    assert state.hospitals["Ashford"].doing == "done"
    state = happens(state, "round-started", 10, round=1)
    state = happens(state, "site-sent", 10, round=1, site="Ashford")
    assert state.hospitals["Ashford"].doing == "training"
    assert "for 20 s" in drawn(state, 30)


def test_without_privacy_the_interval_has_no_noise(study: Study) -> None:
    state = after(State.begin(make_study(private=False), NAMES), finished(1))
    assert "AUC 0.750 (0.625 to 0.875)" in drawn(state)


def test_a_finished_round_gives_auc_budget_and_who_was_missing(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "round-started", round=1)
    line = finished(
        1,
        Ashford={"state": "update", "reason": "", "epsilon": 2.5, "budget": 4.0},
        Brook={"state": "late", "reason": "no answer within 9 s"},
    )
    text = drawn(after(state, line))
    assert "AUC 0.750 (0.625 to 0.875, noise included)" in text
    assert "2.50 of 4" in text
    assert "late (no answer within 9 s)" in text


def test_figures_of_an_old_round_do_not_undo_the_round_in_progress(study: Study) -> None:
    state = State.begin(study, NAMES)
    for number in (1, 2):
        state = happens(state, "round-started", round=number)
        state = happens(state, "site-sent", round=number, site="Ashford")
    state = after(state, finished(1, Ashford={"state": "update", "epsilon": 1.5, "budget": 8.0}))
    assert state.hospitals["Ashford"].doing == "training"
    assert state.hospitals["Ashford"].epsilon == 1.5


def test_the_time_left_is_the_mean_round_times_the_rounds_to_go(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "round-started", 0, round=1)
    assert state.seconds_left(NOON_SECONDS) is None
    state = after(state, finished(1, seconds=20.0))
    state = after(state, finished(2, seconds=40.0))
    assert state.seconds_left(NOON_SECONDS) == 2 * 30.0
    state = happens(state, "round-started", 10, round=3)
    assert state.seconds_left(NOON_SECONDS + 15) == 2 * 30.0 - 5
    assert state.seconds_left(NOON_SECONDS + 900) == 30.0
    assert "about 55 s left" in drawn(state, 15)
    assert happens(state, "run-finished").seconds_left(NOON_SECONDS) is None


def test_a_hospital_in_training_shows_its_time_left_from_its_last_answer(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "round-started", round=1)
    state = happens(state, "site-sent", 0, round=1, site="Brook")
    assert "for 7 s" in drawn(state, 7)
    state = happens(state, "site-replied", 12, round=1, site="Brook")
    assert "took 12 s" in drawn(state, 12)
    state = happens(state, "site-sent", 20, round=2, site="Brook")
    assert "about 9 s left" in drawn(state, 23)
    assert "any moment" in drawn(state, 40)


def test_the_closing_evaluation_is_named(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "round-started", round=4)
    state = happens(state, "site-sent", round=5, site="Brook")
    assert "closing evaluation" in drawn(state)
    assert state.hospitals["Brook"].doing == "evaluating"


def test_without_privacy_the_view_says_so() -> None:
    state = happens(State.begin(make_study(private=False), NAMES), "round-started", round=1)
    text = drawn(state)
    assert "NO PRIVACY" in text
    assert text.count("no privacy") == len(NAMES)
    assert " of 8" not in text


def test_the_end_and_the_failure_are_told_apart(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "run-failed", error="too few sites")
    assert (state.error, state.finished) == ("too few sites", False)
    assert "too few sites" in drawn(state)
    state = happens(state, "run-started")
    assert state.error == ""
    state = happens(state, "run-finished")
    assert (state.error, state.finished) == ("", True)


def test_many_hospitals_are_counted_rather_than_listed(study: Study) -> None:
    names = [f"Site {number}" for number in range(50)]
    state = State.begin(study, names)
    for name in names:
        state = happens(state, "site-sent", round=1, site=name)
    state = happens(state, "site-replied", round=1, site="Site 49")
    assert "and 30 more: 29 training, 1 done" in drawn(state)


def test_control_characters_of_a_site_never_reach_the_terminal(study: Study) -> None:
    state = State.begin(study, NAMES)
    state = happens(state, "site-failed", round=1, site="Brook", error="bad \x1b[2J\x9b31m end\nX")
    text = drawn(state)
    assert not {"\x1b", "\x9b"} & set(text)
    assert "bad [2J 31m end X" in text


def test_markup_of_a_site_is_shown_as_it_is(study: Study) -> None:
    state = happens(State.begin(study, NAMES), "site-failed", site="Brook", error="[red]x[/bold]")
    assert "[red]x[/bold]" in drawn(state)


def test_only_whole_lines_are_read_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"event": "a"}\n{"event": "\xc3')
    assert tail.read() == [{"event": "a"}]
    with path.open("ab") as file:
        file.write(b'\xa4"}\nnot json\n[1]\n{"event": "c"}\n')
    assert tail.read() == [{"event": "ä"}, {"event": "c"}]
    assert tail.read() == []


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "new"
    path.write_text('{"round": 1}\n')
    tail = Tail(path)
    tail.read()
    other.write_text('{"round": 7, "longer": "than the file before"}\n')
    other.replace(path)
    assert [line["round"] for line in tail.read()] == [7]


@given(st.lists(st.binary(max_size=30)), st.data())
def test_any_way_of_growing_gives_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], data: st.DataObject
) -> None:
    objects = [{"event": line.decode("latin-1")} for line in lines]
    content = b"".join(json.dumps(it).encode() + b"\n" for it in objects)
    path = tmp_path_factory.mktemp("tail") / "events.jsonl"
    tail, seen = Tail(path), []
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=5))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start:end])
        seen += tail.read()
    assert seen == objects


def write(run: Path, name: str, *lines: dict[str, Any]) -> None:
    with (run / name).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_elsewhere_than_on_a_terminal_each_event_and_round_is_one_line(
    tmp_path: Path, study: Study
) -> None:
    text = io.StringIO()
    console = Console(file=text, width=40)
    with LiveView(tmp_path, study, NAMES, console) as view:
        write(
            tmp_path,
            "events.jsonl",
            {"event": "round-started", "time": NOON.format(3), "round": 1},
            {"event": "site-refused", "time": NOON.format(4), "round": 1, "site": "Brook",
             "code": "study-not-approved"},
        )  # fmt: skip
        view.refresh()
        write(tmp_path, "metrics.jsonl", finished(1, Ashford={"state": "update"}, Brook={}))
        write(tmp_path, "events.jsonl", {"event": "run-finished", "time": NOON.format(9)})
        view.refresh()
        view.refresh()
    assert view.state.finished
    assert text.getvalue().splitlines() == [
        "12:00:03 round 1: started",
        "12:00:04 round 1: Brook: refused: study-not-approved",
        "12:00:09 run finished",
        "round 1 of 4 finished: AUC 0.750 (0.625 to 0.875, noise included), 1 of 2 hospitals",
    ]


def test_on_a_terminal_the_last_state_stays_on_the_screen(tmp_path: Path, study: Study) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system=None)
    write(tmp_path, "events.jsonl", {"event": "round-started", "round": 2})
    with LiveView(tmp_path, study, NAMES, console) as view:
        view.refresh()
        write(tmp_path, "metrics.jsonl", finished(2, Castle={"state": "update", "epsilon": 3.5}))
    text = screen.getvalue()
    assert "3.50 of 8" in text[text.rindex("round 2 of 4") :]


def test_a_failure_of_an_earlier_attempt_is_not_the_end_of_this_one(
    tmp_path: Path, study: Study
) -> None:
    write(tmp_path, "events.jsonl", {"event": "run-failed", "time": NOON.format(5), "error": "x"})
    console = Console(file=io.StringIO())
    with LiveView(tmp_path, study, NAMES, console, since=NOON_SECONDS + 6) as view:
        assert view.state.error == ""
        write(
            tmp_path, "events.jsonl", {"event": "run-failed", "time": NOON.format(7), "error": "y"}
        )
        view.refresh()
        assert view.state.error == "y"
    with LiveView(tmp_path, study, NAMES, console) as view:
        assert view.state.error == "y"


def test_the_view_of_a_run_of_the_real_round_loop(world: Any) -> None:
    refusing = world.sites[2]
    refusing.answer = lambda request, weights, time: refusing.refuse(request, "policy-epsilon")
    world.run()
    screen = io.StringIO()
    with LiveView(world.run_dir, world.study, NAMES, Console(file=screen, width=200)) as view:
        state = view.state
    assert (state.finished, state.error) == (True, "")
    assert {name: site.doing for name, site in state.hospitals.items()} == {
        "Ashford": "done",
        "Brook": "refused",
        "Castle": "done",
    }
    assert state.hospitals["Brook"].why == "policy-epsilon"
    assert state.hospitals["Castle"].epsilon == 2.0
    assert state.hospitals["Castle"].took == pytest.approx(2.0, abs=1)
    assert state.auc.value is not None
    assert "closing evaluation finished" in screen.getvalue()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Ashford", "x", "\x1b"]), inner, max_size=3)
    ),
    max_leaves=6,
)
EVENT = st.fixed_dictionaries(
    {"event": st.sampled_from(["run-started", "round-started", "site-sent", "site-replied",
                               "site-refused", "site-failed", "run-failed", "other"]) | ANYTHING},
    optional=dict.fromkeys(("time", "round", "site", "code", "error", "epsilon"), ANYTHING),
)  # fmt: skip
ROUND = st.fixed_dictionaries(
    {"round": st.integers(0, 9) | ANYTHING},
    optional=dict.fromkeys(("seconds", "closing", "auc", "auc_low", "auc_high"), ANYTHING)
    | {
        "sites": st.dictionaries(
            st.sampled_from(NAMES),
            st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("state", "reason", "epsilon", "budget"), ANYTHING)
            ),
        )
        | ANYTHING
    },
)


@given(st.lists(EVENT, max_size=6), st.lists(ROUND, max_size=3), st.floats(0, 2e9))
def test_no_line_can_break_the_view(events: list[Any], rounds: list[Any], now: float) -> None:
    state = State.begin(make_study(), NAMES)
    for line in events:
        state = state.apply(event(line))
    for record in filter(None, map(round_record, rounds)):
        state = state.record(record)
    assert "lungs" in drawn(state, now - NOON_SECONDS)
