"""The model fine-tuned at a site: charged like any round, made once, and never sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from client.local_state import own_names
from client.personal import personal_model, personal_weights
from client.policy import check_study
from client.rounds import handle
from client.training import train_round
from shared.accounting import Mechanism, epsilon
from shared.errors import PolicyRefusal, SiteError
from shared.models import build_model, get_weights, initial_weights, set_weights
from shared.study import Study
from shared.transport import Weights
from simulations.seeded import SeededStream

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]
ROUNDS = 3  # of the ward's study
CLOSING = ROUNDS + 1


class Stopping(SeededStream):
    """A stream that fails after so many draws of noise, as if the process died there."""

    def __init__(self, seed: int, draws: int) -> None:
        super().__init__(seed)
        self.left = draws

    def rounded_gaussian(self, shape: Sequence[int], s: float) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")
        return super().rounded_gaussian(shape, s)


def personal_study(ward: Ward, rounds: int = 2, **training: Any) -> Study:
    study = ward.study(training={"personal_rounds": rounds} | training)
    ward.approve(study)
    return study


def close(ward: Ward, study: Study, **fields: Any) -> Any:
    return ward.answer(study, CLOSING, task="evaluate", **fields)


def charged(ward: Ward, purpose: str) -> list[tuple[int, int]]:
    """Round and uses of each charge."""
    with ward.hospital().ledger() as ledger:
        entries = ledger.entries()
    return [(e.round, e.uses) for e in entries if (e.kind, e.purpose) == ("reserve", purpose)]


def lose_answer(ward: Ward) -> None:
    for file in (ward.home / "outbox").iterdir():
        file.unlink()


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_closing_fine_tunes_evaluates_both_models_and_sends_counts_only(ward: Ward) -> None:
    study = personal_study(ward)
    for number in (1, 2, 3):
        ward.ask(study, number)
    reply, update = close(ward, study)
    assert (reply.outcome, update) == ("evaluated", {})
    assert reply.evaluation is not None
    assert reply.personal is not None
    assert reply.personal.noise == reply.evaluation.noise > 0
    assert charged(ward, "train") == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
    assert charged(ward, "evaluate") == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert ward.kinds().count(("commit", "train")) == 5
    assert ward.kinds().count(("commit", "evaluate")) == 4
    left = ward.audit()[-1].left
    assert (left.parameters, left.bytes) == (0, 0)
    assert {"evaluation", "personal"} < set(left.fields)


def test_all_of_it_with_the_spare_round_keeps_the_studys_budget(ward: Ward) -> None:
    study = personal_study(ward)
    first = ward.ask(study, 1)
    reply, _ = close(ward, study)
    spending = reply.spending
    assert spending.steps == 3 * study.training.local_steps
    training = Mechanism(spending.noise_multiplier, 0.5, study.total_steps)
    assert study.total_steps == (3 + 2 + 1) * 2
    assert epsilon([training], 1e-5) <= 8
    assert epsilon([replace(training, noise_multiplier=training.noise_multiplier * 0.99)], 1e-5) > 8
    evaluations = Mechanism(first.evaluation.noise, 1.0, 3 + 2 + 2)  # a spare closing takes two
    assert epsilon([evaluations], 1e-5) <= 8
    assert epsilon([replace(evaluations, steps=8)], 1e-5) > 8


def test_the_model_is_the_released_one_after_so_many_rounds_of_the_same_training(
    ward: Ward,
) -> None:
    study = personal_study(ward, schedule="cosine", proximal=0.3)
    weights = initial_weights(study)
    ward.make_stream = lambda r: SeededStream(7)
    reply, _ = close(ward, study, weights=weights)
    model, stream = build_model(study), SeededStream(7)
    set_weights(model, weights)
    rates = []
    for number in (4, 5):
        before = get_weights(model)
        train_round(
            model,
            ward.cohort(None, study).train,
            study,
            size=12,
            noise_multiplier=reply.spending.noise_multiplier,
            round_number=number,
            stream=stream,
            device=torch.device("cpu"),
            physical_batch=256,
        )
        step = get_weights(model)["head.weight"] - before["head.weight"]
        rates.append(float(np.abs(step).mean()))
    assert rates[0] > rates[1] > 0, "the schedule has not started anew"
    assert same(personal_weights(ward.hospital(), study), get_weights(model))
    images = ward.cohort(None, study).held_out.images
    with torch.no_grad():
        assert torch.equal(personal_model(ward.hospital(), study)(images), model(images))


def test_its_histogram_is_that_of_the_fine_tuned_model(make_ward: MakeWard) -> None:
    ward = make_ward(evaluation="exact", max_epsilon_per_patient=20)
    fine = {"privacy": {"score_bins": 256}}
    study = ward.study(training={"personal_rounds": 2}, **fine)
    plain = ward.study(**fine)
    for each in (study, plain):
        ward.approve(each)
    weights = initial_weights(study)
    reply, _ = close(ward, study, weights=weights)
    own = personal_weights(ward.hospital(), study)
    assert reply.evaluation == ward.ask(plain, 1, weights=weights).evaluation
    assert reply.personal == ward.ask(plain, 2, weights=own).evaluation
    assert reply.personal != reply.evaluation


def test_asked_again_it_is_sent_again_and_nothing_is_trained(ward: Ward) -> None:
    study = personal_study(ward)
    first, _ = close(ward, study)
    kept, entries = personal_weights(ward.hospital(), study), ward.kinds()
    again, _ = close(ward, study, attempt=1)
    assert again.resent
    assert (again.evaluation, again.personal) == (first.evaluation, first.personal)
    assert same(kept, personal_weights(ward.hospital(), study))
    assert ward.kinds() == entries


def test_a_crash_in_a_personal_round_costs_a_spare_one_and_goes_on_behind_the_last_done(
    ward: Ward,
) -> None:
    study = personal_study(ward, rounds=3)
    parameters = len(initial_weights(study))
    per_round = parameters * study.training.local_steps
    ward.make_stream = lambda _: Stopping(1, per_round + parameters)  # in the second round
    assert ward.code(close(ward, study)[0]) == "site-attention"
    ward.look()
    assert charged(ward, "train") == [(4, 1), (5, 1)]
    assert ward.kinds().count(("commit", "train")) == 1
    assert charged(ward, "evaluate") == [], "evaluations are paid when they are made"
    with pytest.raises(SiteError, match="no finished model"):
        personal_model(ward.hospital(), study)
    ward.make_stream = lambda _: SeededStream(2)
    reply, _ = close(ward, study, attempt=1)
    assert reply.personal is not None
    assert charged(ward, "train") == [(4, 1), (5, 1), (5, 1), (6, 1)]
    assert reply.spending.steps == 4 * study.training.local_steps


def test_without_a_spare_round_left_the_site_sits_out(ward: Ward) -> None:
    study = personal_study(ward)
    for _ in range(2):
        ward.make_stream = lambda _: Stopping(1, 1)
        assert ward.code(close(ward, study)[0]) == "site-attention"
        ward.look()
    ward.make_stream = lambda _: SeededStream(2)
    assert ward.code(close(ward, study)[0]) == "budget-exhausted"
    assert len(charged(ward, "train")) == 2


def test_a_lost_answer_is_made_again_without_training(ward: Ward) -> None:
    study = personal_study(ward)
    close(ward, study)
    kept = personal_weights(ward.hospital(), study)
    lose_answer(ward)
    again, _ = close(ward, study, attempt=1)
    assert not again.resent
    assert again.personal is not None
    assert charged(ward, "evaluate") == [(4, 2), (4, 2)], "the spare round covers both models"
    lose_answer(ward)
    assert ward.code(close(ward, study, attempt=2)[0]) == "budget-exhausted"
    assert len(charged(ward, "train")) == 2
    assert same(kept, personal_weights(ward.hospital(), study))


def test_a_closing_that_cannot_evaluate_both_models_charges_neither(ward: Ward) -> None:
    study = personal_study(ward)
    for number in (1, 2, 3):
        ward.ask(study, number)
    lose_answer(ward)
    ward.ask(study, 3, attempt=1)  # takes one of the two spare evaluations
    close(ward, study)
    before = charged(ward, "evaluate")
    lose_answer(ward)
    assert ward.code(close(ward, study, attempt=1)[0]) == "budget-exhausted"
    assert charged(ward, "evaluate") == before == [(1, 1), (2, 1), (3, 1), (3, 1), (4, 2)]


def test_from_other_released_weights_it_begins_anew(ward: Ward) -> None:
    study = ward.study(training={"personal_rounds": 1}, privacy={"spare_rounds": 3})
    ward.approve(study)
    close(ward, study)
    first = personal_weights(ward.hospital(), study)
    others = {name: array + 1 for name, array in initial_weights(study).items()}
    reply, _ = close(ward, study, weights=others, run="run-2")
    assert reply.personal is not None
    assert charged(ward, "train") == [(4, 1), (4, 1)]
    second = personal_weights(ward.hospital(), study)
    name = "head.bias"
    assert np.abs(second[name] - others[name]).max() < np.abs(second[name] - first[name]).max()


def test_a_day_without_room_for_all_personal_rounds_refuses_before_the_first(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_rounds_per_day=3)
    study = personal_study(ward, rounds=2)
    for number in (1, 2):
        ward.ask(study, number)
    entries = ward.kinds()
    assert ward.code(close(ward, study)[0]) == "policy-rounds"
    assert ward.kinds() == entries
    ward.time += timedelta(days=1)
    assert close(ward, study)[0].personal is not None
    assert charged(ward, "train") == [(1, 1), (2, 1), (4, 1), (5, 1)]


def test_after_a_crash_the_day_needs_room_for_the_personal_rounds_that_are_left(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_rounds_per_day=3)
    study = personal_study(ward, rounds=3)
    parameters = len(initial_weights(study))
    per_round = parameters * study.training.local_steps
    ward.make_stream = lambda _: Stopping(1, per_round + parameters)  # in the second round
    assert ward.code(close(ward, study)[0]) == "site-attention"
    ward.look()
    ward.make_stream = lambda _: SeededStream(2)
    assert ward.code(close(ward, study)[0]) == "policy-rounds"
    assert charged(ward, "train") == [(4, 1), (5, 1)]
    ward.policy["max_rounds_per_day"] = 4
    assert close(ward, study)[0].personal is not None
    assert charged(ward, "train") == [(4, 1), (5, 1), (5, 1), (6, 1)]


def test_more_personal_rounds_than_a_day_may_have_are_refused_before_round_1(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(max_rounds_per_day=2)
    study = personal_study(ward, rounds=3)
    assert ward.code(ward.ask(study, 1)) == "policy-rounds"
    assert ward.loads == 0
    with pytest.raises(PolicyRefusal, match=r"fine-tunes for 3 rounds in a row.* allows 2 a day"):
        check_study(ward.hospital().site.config.policy, study, 12)


def test_it_is_made_where_the_policy_shares_no_evaluation(make_ward: MakeWard) -> None:
    ward = make_ward(evaluation="none")
    study = personal_study(ward)
    reply, _ = close(ward, study)
    assert (reply.outcome, reply.evaluation, reply.personal) == ("evaluated", None, None)
    assert charged(ward, "evaluate") == []
    assert personal_model(ward.hospital(), study)


def test_with_own_norms_only_the_released_model_wears_them(ward: Ward) -> None:
    study = ward.study(training={"local_norms": True})
    ward.approve(study)
    _, update = ward.answer(study, 1)
    reply, _ = close(ward, study)
    assert reply.personal is None
    assert charged(ward, "train") == [(1, 1)]
    released, own = initial_weights(study), personal_weights(ward.hospital(), study)
    changed = {name for name in released if not np.array_equal(released[name], own[name])}
    assert changed == own_names(study)
    for name in changed:
        np.testing.assert_allclose(own[name], released[name] + update[name], rtol=1e-6)


def test_a_patient_who_opted_out_is_not_in_it(ward: Ward) -> None:
    study = personal_study(ward)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-3"))
    close(ward, study)
    gone = ward.pseudonym("train-3")
    with ward.hospital().ledger() as ledger:
        assert not any(gone in who for who in ledger.members().values() if len(who) > 1)


def test_it_lies_encrypted_and_other_studies_have_none(ward: Ward) -> None:
    study = personal_study(ward)
    close(ward, study)
    (file,) = (ward.home / "local").iterdir()
    assert b"head.weight" not in file.read_bytes()
    with pytest.raises(SiteError, match="no finished model"):
        personal_weights(ward.hospital(), ward.study())
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(SiteError, match="no finished model"):
        personal_weights(ward.hospital(), study)


def test_training_that_fails_to_be_kept_leaves_the_closing_undone(ward: Ward) -> None:
    study = personal_study(ward)
    (ward.home / "local").write_text("in the way")
    reply, _ = handle(
        ward.hospital(),
        ward.request(study, CLOSING, task="evaluate"),
        initial_weights(study),
    )
    assert ward.code(reply) == "site-attention"
    assert charged(ward, "train") == []
