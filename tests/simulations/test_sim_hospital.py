"""Simulated hospitals: each round from what there was before it, and from the seed alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from federation_kit import federation, study

from client.rounds import handle
from shared.models import initial_weights
from shared.protocol import Reply, Request
from shared.transport import Weights
from simulations.build import Federation
from simulations.hospital import SCENE, Cast, Scene, SimulatedSite, open_cast
from simulations.stage import write_stage

STUDY = study()
START = initial_weights(STUDY)
Answer = tuple[Reply, dict[str, bytes]]


def write_scene(folder: Path, hospitals: Federation, seed: int = 5) -> Scene:
    (folder / "homes").mkdir(parents=True)
    sides = write_stage(folder, hospitals, STUDY)
    sites = [
        SimulatedSite(name=site.name, patients=len(site.train) + len(site.held_out), sides=own)
        for site, own in zip(hospitals.sites, sides, strict=True)
    ]
    scene = Scene(
        study=STUDY,
        seed=seed,
        data=folder,
        homes=folder / "homes",
        server_key=folder / "none.pub",
        device="cpu",
        sites=tuple(sites),
    )
    (folder / SCENE).write_text(scene.model_dump_json())
    return scene


@pytest.fixture
def cast(tmp_path: Path) -> Cast:
    return Cast(write_scene(tmp_path, federation()))


def ask(cast: Cast, site: int, number: int, attempt: int = 0, weights: Weights = START) -> Answer:
    request = Request(
        task="train",
        run="run-1",
        study_digest=STUDY.digest,
        study=STUDY.canonical(),
        round=number,
        attempt=attempt,
    )
    reply, update = handle(cast.hospital(site, request), request, weights)
    assert reply.outcome == "update", reply
    # A ledger's head is keyed by its own hospital, founded anew each time, and holds the time.
    reply = reply.model_copy(update={"head": None})
    return reply, {name: array.tobytes() for name, array in update.items()}


def spent(answer: Answer) -> float:
    assert answer[0].spending is not None
    return answer[0].spending.epsilon


def test_a_round_asked_anew_is_done_again_from_what_there_was_before_it(cast: Cast) -> None:
    first = ask(cast, 0, 1)
    second = ask(cast, 0, 2)
    assert spent(second) > spent(first) > 0
    assert ask(cast, 0, 2) == second
    assert ask(cast, 0, 1) == first, "a run begun anew finds the hospital as it was founded"
    assert ask(cast, 0, 2) == second


def test_a_second_attempt_meets_the_hospital_that_answered_the_first(cast: Cast) -> None:
    first = ask(cast, 0, 1)
    again = ask(cast, 0, 1, attempt=1)
    assert again[0].resent
    assert again[1] == first[1]
    assert spent(again) == spent(first)
    changed = {name: array + 1 for name, array in START.items()}
    other = ask(cast, 0, 1, attempt=2, weights=changed)
    assert not other[0].resent
    assert spent(other) > spent(first), "trained anew, and paid anew"


def test_what_is_drawn_follows_from_seed_site_and_round_alone(tmp_path: Path) -> None:
    made = federation(2)
    twins = Federation(
        (made.sites[0], replace(made.sites[0], name="site-2")), made.test, made.dataset
    )
    answers = {
        (seed, site): ask(Cast(write_scene(tmp_path / f"{seed}-{site}", twins, seed)), site, 1)[1]
        for seed in (5, 6)
        for site in (0, 1)
    }
    repeated = ask(Cast(write_scene(tmp_path / "again", twins, 5)), 1, 1)[1]
    assert repeated == answers[5, 1]
    assert len({tuple(sorted(answer.items())) for answer in answers.values()}) == 4


def test_at_the_end_there_are_those_that_were_asked_with_what_they_spent(cast: Cast) -> None:
    ask(cast, 2, 1)
    last = ask(cast, 2, 2)
    hospitals = cast.at_the_end()
    assert list(hospitals) == ["site-3"]
    with hospitals["site-3"].ledger() as ledger:
        trained = [
            entry
            for entry in ledger.entries()
            if (entry.kind, entry.purpose) == ("reserve", "train")
        ]
    steps = sum(entry.steps for entry in trained)
    assert last[0].spending is not None
    assert steps == last[0].spending.steps == 2 * STUDY.training.local_steps


def test_each_hospital_has_its_own_patients_and_the_scene_is_kept_open(tmp_path: Path) -> None:
    made = federation()
    write_scene(tmp_path, made)
    cast = open_cast(tmp_path, "one")
    assert open_cast(tmp_path, "one") is cast
    sizes = [ask(cast, number, 1)[0].patients for number in range(3)]
    assert sizes == [15, 19, 22], "85 % of the 18, 22 and 26 that the scenario deals them"
    assert open_cast(tmp_path, "two") is not cast
