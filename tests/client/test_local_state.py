"""What a site keeps between rounds: whole after crashes and restarts, encrypted, its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from client.gate import split_control
from client.local_state import LocalState, own_names
from client.rounds import handle
from client.training import train_round
from shared.errors import ProtocolError
from shared.models import build_model, get_weights, initial_weights, set_weights
from shared.protocol import CONTROL
from shared.schedule import learning_rates
from shared.study import Study
from shared.transport import Weights
from simulations.seeded import SeededStream

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]
CPU = torch.device("cpu")


@pytest.fixture
def ward(make_ward: MakeWard) -> Ward:
    """A hospital whose randomness follows from run, round and attempt."""
    ward = make_ward()
    ward.make_stream = lambda r: SeededStream(1, r.run, r.round, r.attempt)
    return ward


def with_control(study: Study, value: float = 0.0) -> Weights:
    weights = initial_weights(study)
    control = {CONTROL + n: np.full_like(a, value) for n, a in weights.items()}
    return weights | control


def state_before(ward: Ward, study: Study, number: int, **fields: Any) -> LocalState:
    return ward.hospital().local_states.before(ward.request(study, number, **fields))


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_the_own_variate_is_the_mean_step_of_the_round_whatever_was_before(ward: Ward) -> None:
    # c_i - c + (x - y) / (K lr), and y went along g + c - c_i: what is left is the mean of g.
    study = ward.study(training={"control": True, "schedule": "cosine"})
    ward.approve(study)
    for number, value in ((1, 0.0), (2, 0.3)):
        before = state_before(ward, study, number).control
        _, update = ward.answer(study, number, weights=with_control(study, value))
        after = state_before(ward, study, number + 1).control
        assert after.keys() == update.keys()
        for name, own in after.items():
            corrected = -update[name] / sum(learning_rates(study, number))
            step = corrected - (value - before.get(name, 0))
            np.testing.assert_allclose(own, step, rtol=1e-4, atol=1e-4)
    assert any(np.abs(own).max() > 0.1 for own in after.values())


def test_it_survives_a_restart_and_belongs_to_its_run_and_study(ward: Ward) -> None:
    study, other = (ward.study(training={"control": True, "proximal": mu}) for mu in (0.0, 0.1))
    for plan in (study, other):
        ward.approve(plan)
    ward.ask(study, 1, weights=with_control(study))
    assert state_before(ward, study, 2).control
    assert state_before(ward, study, 1) == LocalState()
    assert state_before(ward, study, 2, run="run-2") == LocalState()
    assert state_before(ward, other, 2) == LocalState()


def test_it_is_encrypted_and_bound_to_its_place(ward: Ward) -> None:
    study = ward.study(training={"control": True})
    ward.approve(study)
    ward.ask(study, 1, weights=with_control(study))
    (file,) = (ward.home / "local").iterdir()
    content = file.read_bytes()
    assert not any(x in content for x in (b"control", b"head.weight", study.digest.encode()))
    (ward.home / "local" / file.name.replace("00001", "00002")).write_bytes(content)
    # A file put in another's place is refused; the one before it serves.
    assert same(state_before(ward, study, 3).control, state_before(ward, study, 2).control)
    assert state_before(ward, study, 2).control


def test_a_damaged_state_counts_as_lost(ward: Ward) -> None:
    study = ward.study(training={"control": True})
    ward.approve(study)
    ward.ask(study, 1, weights=with_control(study))
    (file,) = (ward.home / "local").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert state_before(ward, study, 2) == LocalState()
    assert ward.ask(study, 2, weights=with_control(study)).outcome == "update"


def test_only_what_a_repeat_could_need_is_kept(ward: Ward) -> None:
    study = ward.study(training={"control": True})
    ward.approve(study)
    for number in (1, 2, 3):
        ward.ask(study, number, weights=with_control(study))
    rounds = sorted(file.stem[-5:] for file in (ward.home / "local").iterdir())
    assert rounds == ["00002", "00003"]


def test_a_round_that_did_not_count_leaves_no_trace(ward: Ward) -> None:
    study = ward.study(training={"control": True, "local_norms": True})
    ward.approve(study)
    twin = ward.copy("twin")
    twin.make_stream = ward.make_stream
    sent = with_control(study, 0.1)
    for site in (ward, twin):
        site.ask(study, 1, weights=sent)
    ward.ask(study, 2, weights=with_control(study, 0.7))  # its answer comes too late
    _, one = ward.answer(study, 3, weights=sent, counted=1)
    _, other = twin.answer(study, 3, weights=sent, counted=1)
    assert same(one, other)
    states = [state_before(site, study, 4) for site in (ward, twin)]
    assert same(states[0].control, states[1].control)
    assert same(states[0].norms, states[1].norms)
    assert not same(states[0].control, state_before(ward, study, 3).control)


def test_killed_before_the_state_is_written_the_update_sent_again_writes_it(ward: Ward) -> None:
    study = ward.study(training={"control": True, "local_norms": True})
    ward.approve(study)
    twin = ward.copy("twin")
    twin.make_stream = ward.make_stream
    for number in (1, 2):
        ward.ask(study, number, weights=with_control(study))
        twin.ask(study, number, weights=with_control(study))
        # The twin was killed after its update was kept: the round's file is not there.
        (newest,) = (twin.home / "local").glob(f"*-0000{number}.sealed")
        newest.unlink()
        assert twin.ask(study, number, weights=with_control(study), attempt=1).resent
    one, other = (state_before(w, study, 3) for w in (ward, twin))
    assert same(one.control, other.control)
    assert same(one.norms, other.norms)


def test_sent_again_after_the_state_was_written_it_stays_what_it_was(ward: Ward) -> None:
    study = ward.study(training={"control": True, "local_norms": True})
    ward.approve(study)
    ward.ask(study, 1, weights=with_control(study))
    ward.ask(study, 2, weights=with_control(study))
    before = state_before(ward, study, 3)
    assert ward.ask(study, 2, weights=with_control(study), attempt=1).resent
    after = state_before(ward, study, 3)
    assert same(before.control, after.control)
    assert same(before.norms, after.norms)


def test_a_round_whose_update_was_lost_begins_again_from_the_same_state(ward: Ward) -> None:
    study = ward.study(training={"control": True, "local_norms": True})
    ward.approve(study)
    ward.ask(study, 1, weights=with_control(study))
    before = state_before(ward, study, 2)
    ward.make_stream = lambda r: SeededStream(1, r.run, r.round)  # repeats draw the same
    _, first = ward.answer(study, 2, weights=with_control(study, 0.2))
    for file in (ward.home / "outbox").iterdir():
        file.unlink()
    again, second = ward.answer(study, 2, weights=with_control(study, 0.2), attempt=1)
    assert not again.resent
    assert same(first, second)
    assert same(state_before(ward, study, 2).control, before.control)


def test_a_site_trains_from_its_own_norms_and_tells_all_relative_to_the_global_ones(
    ward: Ward,
) -> None:
    study = ward.study(training={"local_norms": True})
    ward.approve(study)
    own = own_names(study)
    assert len(own) == 4
    first = initial_weights(study)
    _, update = ward.answer(study, 1, weights=first)
    norms = {name: first[name] + update[name] for name in own}
    assert any(np.abs(update[name]).max() > 1e-3 for name in own)
    rng = np.random.default_rng(0)
    second = {n: a + rng.normal(0, 0.1, a.shape).astype(np.float32) for n, a in first.items()}
    reply, found = ward.answer(study, 2, weights=second)

    model = build_model(study)
    set_weights(model, second | norms)
    stream = SeededStream(1, "run-1", 2, 0)
    stream.rounded_gaussian((1, 2, 16), 1.0)  # the evaluation's noise comes first
    train_round(
        model,
        ward.cohort(None, study).train,
        study,
        size=12,
        noise_multiplier=reply.spending.noise_multiplier,
        round_number=2,
        stream=stream,
        device=CPU,
        physical_batch=256,
    )
    expected = {n: new - second[n] for n, new in get_weights(model).items()}
    assert same(found, expected)
    kept = state_before(ward, study, 3).norms
    for name in own:
        np.testing.assert_allclose(kept[name], get_weights(model)[name], rtol=1e-6)


def test_rounds_are_evaluated_with_the_sites_own_norms_and_what_is_released_without(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(evaluation="exact", max_epsilon_per_patient=20)
    fine = {"privacy": {"score_bins": 256}}
    study = ward.study(training={"local_norms": True}, **fine)
    ward.approve(study)
    weights = initial_weights(study)
    _, update = ward.answer(study, 1, weights=weights)
    own = own_names(study)
    weights["head.weight"] = 0.1 * update["head.weight"]
    worn = weights | {n: weights[n] + update[n] for n in own}
    plain = ward.study(**fine)
    ward.approve(plain)
    expected, without = (ward.ask(plain, 1, weights=w).evaluation for w in (worn, weights))
    assert expected != without, "own norms make no difference to see"
    assert ward.ask(study, 4, task="evaluate", weights=weights).evaluation == without
    assert ward.ask(study, 2, weights=weights).evaluation == expected


@pytest.mark.parametrize("fault", ["missing", "name", "shape", "dtype", "nan"])
def test_an_unfit_control_variate_is_refused_before_anything_is_spent(
    ward: Ward, fault: str
) -> None:
    study = ward.study(training={"control": True})
    ward.approve(study)
    sent = with_control(study)
    name = CONTROL + "head.weight"
    change: dict[str, Callable[[], object]] = {
        "missing": lambda: sent.pop(name),
        "name": lambda: sent.update({CONTROL + "other": sent.pop(name)}),
        "shape": lambda: sent.update({name: sent[name][..., :1]}),
        "dtype": lambda: sent.update({name: sent[name].astype(np.float64)}),
        "nan": lambda: sent[name].fill(np.nan),
    }
    change[fault]()
    assert ward.code(ward.ask(study, 1, weights=sent)) == "message-invalid"
    assert ward.kinds() == [("start", "")]


def test_a_control_variate_nobody_asked_for_is_refused(ward: Ward) -> None:
    plain, controlled = ward.study(), ward.study(training={"control": True})
    for study, task in ((plain, "train"), (plain, "evaluate"), (controlled, "evaluate")):
        with pytest.raises(ProtocolError, match="control variate"):
            split_control(study, task, with_control(study))
        model, control = split_control(study, "evaluate", initial_weights(study))
        assert (model.keys(), control) == (initial_weights(study).keys(), {})


def test_a_clock_set_back_after_the_update_was_kept_leaves_state_and_update_together(
    ward: Ward,
) -> None:
    study = ward.study(training={"control": True})
    ward.approve(study)
    hospital = ward.hospital()
    start = ward.time

    def clock() -> Any:
        """Jump back once the update is kept, which makes the commit fail."""
        return start - timedelta(days=1) * (ward.home / "outbox").exists()

    request = ward.request(study, 1)
    reply, _ = handle(replace(hospital, now=clock), request, with_control(study))
    assert ward.code(reply) == "site-attention"
    ward.look()
    early = state_before(ward, study, 2)
    _, update = ward.answer(study, 1, weights=with_control(study))
    assert same(early.control, state_before(ward, study, 2).control)
    expected = {n: -u / np.float32(sum(learning_rates(study, 1))) for n, u in update.items()}
    assert same(early.control, expected)
