"""The round loop: from the first site that comes online to the released model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from server.advance import advance, first_state, travelling_control
from server.aggregate import Aggregator
from server.clock import Clock
from server.countersign import Countersigner, HeadBook
from server.exchange import Exchange, Patience, Question
from server.files import JsonLines
from server.guards import (
    DESCRIPTION_RULES,
    EVALUATION_RULES,
    UPDATE_RULES,
    Rule,
    Submission,
    first_objection,
)
from server.outcome import metrics_line, overall_metrics, site_records, subgroup_metrics
from server.release import ModelCard, sha256, weights_file, write_release
from server.robust import make_aggregator
from server.runs import Checkpoint, RunFolder, open_run
from shared.errors import CoordinatorError
from shared.models import initial_weights
from shared.protocol import Reply, Request, Statistics
from shared.statistics import merge_statistics
from shared.study import Study
from shared.transport import Transport, Weights

SYSTEM_CLOCK = Clock()
PATIENT = Patience()


@dataclass(frozen=True)
class Rules:
    """How a run judges and combines what comes in.

    Attributes:
        description: What statistics asked for before round 1 must pass.
        update: What an update must pass.
        evaluation: What the answer to the closing evaluation must pass.
        aggregator: Makes a round's aggregator from the study and the global weights.
    """

    description: Sequence[Rule] = DESCRIPTION_RULES
    update: Sequence[Rule] = UPDATE_RULES
    evaluation: Sequence[Rule] = EVALUATION_RULES
    aggregator: Callable[[Study, Weights], Aggregator] = make_aggregator


AS_THE_STUDY_SAYS = Rules()


def run_federation(
    run_dir: Path,
    study: Study,
    sites: dict[int, str],
    transport: Transport,
    *,
    server_home: Path,
    initial: Callable[[Study], Weights] = initial_weights,
    rules: Rules = AS_THE_STUDY_SAYS,
    clock: Clock = SYSTEM_CLOCK,
    patience: Patience = PATIENT,
    on_round: Callable[[int], None] = lambda _: None,
) -> None:
    """Run a study to its release, or take it up after its last whole checkpoint.

    Leaves in `run_dir`: `study.json`, `sites.json`, `run.json`, `events.jsonl`,
    `metrics.jsonl`, `checkpoints/`, `model.safetensors` and `model-card.json`. A run that has
    its card is done; running it again changes nothing.

    Where the study needs the sites' noised statistics, they are asked for before round 1 and
    kept in `statistics.json`; a site that comes later trains with those of the others.

    Until `federation.start_deadline` after the start, a round is open: sites that come online,
    or approve the study, are asked too, and the round waits for those that have done neither.
    Later rounds ask the sites that are online when they begin. Rounds are evaluated on the
    weights the sites were sent. The closing evaluation and the release use the running mean of
    the global weights if the study asks for one (`federation.average`), else the last.

    Args:
        run_dir: The run's folder.
        study: The plan.
        sites: Node id to site name: who may take part; no other node is asked.
        transport: The network.
        server_home: Holds the countersigning key and the book of ledger heads.
        initial: Gives the weights of round 1.
        rules: How updates are judged and combined.
        clock: Time.
        patience: How to wait and how often to try.
        on_round: Called with a round's number when it begins; the closing evaluation has the
            number after the last.

    Raises:
        CoordinatorError: Too few sites came, or a round failed as often as it was tried; names
            the sites and their reasons. The run can be taken up again.
    """
    if (run_dir / "model-card.json").exists():
        return
    with open_run(run_dir, study, sites, clock) as folder:
        heads = HeadBook(server_home / "heads.json", Countersigner.open(server_home))
        exchange = Exchange(sites, transport, heads, folder.log, clock, patience)
        run = _Run(folder, study, sites, exchange, heads, rules, clock, patience, on_round)
        run.go(initial(study))


class _Run:
    """One run in progress; the state between rounds is a `Checkpoint`."""

    def __init__(
        self,
        folder: RunFolder,
        study: Study,
        sites: dict[int, str],
        exchange: Exchange,
        heads: HeadBook,
        rules: Rules,
        clock: Clock,
        patience: Patience,
        on_round: Callable[[int], None],
    ) -> None:
        self._folder, self._study, self._sites = folder, study, sites
        self._exchange, self._heads, self._rules = exchange, heads, rules
        self._clock, self._patience, self._on_round = clock, patience, on_round
        self._statistics: Statistics | None = None

    def go(self, first: Weights) -> None:
        """Let the sites describe their data, train the rounds left, evaluate, release."""
        plan = self._study.federation
        if len(self._sites) < plan.min_sites:
            raise CoordinatorError(
                f"{len(self._sites)} sites may take part, but the study needs {plan.min_sites}",
                todo="Enrol more sites, or lower federation.min_sites",
            )
        state = self._folder.latest(first_state(self._study, first))
        self._folder.log("run-started", run=self._folder.run, rounds_done=state.round)
        self._heads.confirm(state.heads, self._study.digest)
        metrics = self._folder.open_metrics(state.round)
        try:
            self._exchange.wait_for_sites(plan.min_sites, plan.start_deadline)
            open_until = self._clock.monotonic() + plan.start_deadline
            self._statistics = self._describe(open_until)
            for number in range(state.round + 1, plan.rounds + 1):
                state = self._train(number, state, metrics, open_until)
            self._close(state, metrics)
        finally:
            metrics.close()
            # Of a round that failed too: what was answered was spent. Taken up again, the run
            # asks for the same round, for which the sites still have their answers.
            self._heads.confirm(self._exchange.seen_heads, self._study.digest)
        self._folder.log("run-finished", round=plan.rounds)

    def _describe(self, open_until: float) -> Statistics | None:
        """Return the noised counts of all sites' training patients; None if nobody needs them.

        They are asked for once a run.
        """
        known = self._folder.statistics()
        if known is not None or not self._study.needs_statistics:
            return known
        question = self._question("describe", 0, {}, self._rules.description)
        question.open_until = open_until
        self._try(question)
        parts = {
            site: answer.reply.statistics
            for site, answer in sorted(question.answers.items())
            if answer.delivered and answer.reply and answer.reply.statistics
        }
        statistics = merge_statistics(list(parts.values()))
        self._folder.save_statistics(statistics)
        self._heads.confirm(self._exchange.seen_heads, self._study.digest)
        self._folder.log("described", sites=list(parts), noise=statistics.noise)
        return statistics

    def _train(
        self, number: int, state: Checkpoint, metrics: JsonLines, open_until: float
    ) -> Checkpoint:
        """Do one round, and return the state after it, which is safe on disk by then."""
        began = self._clock.monotonic()
        self._on_round(number)
        self._folder.log("round-started", round=number)
        combined = self._rules.aggregator(self._study, state.weights)
        question = self._question("train", number, state.weights, self._rules.update, combined)
        question.weights = state.weights | travelling_control(state)
        question.counted = state.counted
        question.open_until = open_until
        self._try(question)
        sites = site_records(state.sites, question.answers)
        after = replace(
            advance(self._study, state, combined.finish(), sites),
            heads={**state.heads, **self._exchange.seen_heads},
        )
        line = self._line(question, began)
        metrics.append(line)
        self._folder.save(after)
        self._heads.confirm(after.heads, self._study.digest)
        states = {site: entry["state"] for site, entry in line["sites"].items()}
        self._folder.log("round-finished", round=number, seconds=line["seconds"], sites=states)
        return after

    def _try(self, question: Question) -> None:
        """Ask until enough sites have delivered; what has come in is kept between attempts.

        A site that is asked twice for one round answers from what it kept, so trying again
        costs its patients nothing.

        Raises:
            CoordinatorError: Too few delivered, in every attempt; names each site's reason.
        """
        plan, number = self._study.federation, question.request.round
        for attempt in range(self._patience.attempts):
            if attempt:
                self._folder.log("round-repeated", round=number, attempt=attempt)
                self._clock.sleep(self._patience.retry)
                refused = {s for s, a in question.answers.items() if a.state == "refused"}
                self._exchange.wait_for_sites(plan.min_sites, plan.start_deadline, refused)
            self._exchange.ask(question)
            delivered = sum(answer.delivered for answer in question.answers.values())
            if delivered >= plan.min_sites:
                return
        reasons = "; ".join(
            f"{site}: {answer.state}{f', {answer.reason}' if answer.reason else ''}"
            for site, answer in sorted(question.answers.items())
        )
        what = f"round {number}" if number else "the description of the data"
        raise CoordinatorError(
            f"{what} failed: {delivered} of at least {plan.min_sites} sites delivered",
            reasons,
            "Settle the reasons with these sites, then start the run again: it goes on from here",
        )

    def _close(self, state: Checkpoint, metrics: JsonLines) -> None:
        """Evaluate the model to be released, once, and release it."""
        plan = self._study.federation
        self._on_round(state.round + 1)
        self._exchange.wait_for_sites(plan.min_sites, plan.start_deadline)
        began = self._clock.monotonic()
        weights = state.average if plan.average else state.weights
        question = self._question("evaluate", state.round + 1, weights, self._rules.evaluation)
        question.counted = state.counted
        self._exchange.ask(question)
        self._heads.confirm(self._exchange.seen_heads, self._study.digest)
        line = self._line(question, began) | {"closing": True}
        metrics.append(line)
        self._folder.log("evaluation-finished", round=state.round + 1, auc=line["auc"])
        content = weights_file(weights, self._study)
        card = ModelCard(
            run=self._folder.run,
            created=self._clock.now().isoformat(),
            code_version=version("consilium-fl"),
            study_digest=self._study.digest,
            study=self._study,
            weights="average" if plan.average else "last",
            weights_sha256=sha256(content),
            rounds=state.round,
            sites=site_records(state.sites, question.answers),
            closing=overall_metrics(self._study, question.answers),
            subgroups=subgroup_metrics(self._study, question.answers),
            statistics=self._statistics,
        )
        write_release(self._folder.path, content, card)

    def _question(
        self,
        task: Literal["describe", "train", "evaluate"],
        number: int,
        weights: Weights,
        rules: Sequence[Rule],
        combined: Aggregator | None = None,
    ) -> Question:
        """Return a round's question; what passes the rules goes to the aggregator, if any."""
        request = Request(
            task=task,
            run=self._folder.run,
            study_digest=self._study.digest,
            study=self._study.canonical(),
            round=number,
            statistics=self._statistics if self._study.table is not None else None,
        )

        def take(site: str, reply: Reply, update: Weights) -> str:
            submission = Submission(self._study, request, reply, update, weights)
            reason = first_objection(rules, submission)
            if not reason and combined is not None:
                combined.add(site, update, reply.patients)
            return reason

        return Question(request, weights, take, self._study.federation.round_deadline)

    def _line(self, question: Question, began: float) -> dict[str, Any]:
        seconds = self._clock.monotonic() - began
        return metrics_line(self._study, question.request.round, seconds, question.answers)
