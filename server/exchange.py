"""Asking all sites one question and collecting the answers, whatever the network does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.clock import Clock
from server.countersign import HeadBook, fork_head
from server.runs import Log
from shared.errors import ConsiliumError, CoordinatorError
from shared.protocol import PROTOCOL_VERSION, LedgerHead, Reply, Request
from shared.transport import Received, Transport, Weights

NOT_APPROVED = "study-not-approved"

State = Literal["described", "update", "evaluated", "refused", "failed", "late", "absent"]

DONE: dict[str, State] = {"describe": "described", "train": "update", "evaluate": "evaluated"}
"""The state of a site that has done a task, which is also the outcome its reply names."""


@dataclass(frozen=True)
class Answer:
    """What came of asking one site.

    Attributes:
        state: "late": asked, but silent when its time was up; "absent": never online to be
            asked; "failed": no usable answer.
        reason: Why there is no update; empty when there is one.
        reply: What the site sent, if anything valid.
    """

    state: State
    reason: str = ""
    reply: Reply | None = None

    @property
    def delivered(self) -> bool:
        """Whether the site did what was asked."""
        return self.state in DONE.values()


@dataclass(frozen=True)
class Patience:
    """How the server waits, in seconds.

    Attributes:
        poll: Between two looks at what has arrived.
        ask_again: Before a site that has not approved the study is asked once more.
        retry: Before a failed round is tried again.
        attempts: How often a round is tried in all.
        grace: Life of a message in units of the deadline, so that late answers are still seen.
    """

    poll: float = 0.5
    ask_again: float = 10.0
    retry: float = 10.0
    attempts: int = 2
    grace: float = 1.5


@dataclass
class Question:
    """One round's request and the answers so far, by site name.

    Attributes:
        request: What every site is asked; heads are filled in per site.
        weights: Arrays that travel along.
        take: Judges and folds in a site's delivery; returns why it is refused, or nothing.
        seconds: Time each site has from being asked.
        counted: The newest round each site's update became part of the model, by name.
        open_until: Until then sites that come online, or approve the study, are still asked.
        answers: What has come in.
        asked: How often each site was asked.
        first: When each site was first asked, in this attempt.
        since: When it was last asked.
    """

    request: Request
    weights: Weights
    take: Callable[[str, Reply, Weights], str]
    seconds: float
    counted: Mapping[str, int] = field(default_factory=dict)
    open_until: float = 0.0
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    first: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    def undecided(self, site: str) -> bool:
        """Tell whether a site may still come to take part: not asked, or not approved yet."""
        answer = self.answers.get(site)
        return answer.reason == NOT_APPROVED if answer else not self.asked[site]


@dataclass(frozen=True)
class _Sent:
    node: int
    site: str
    round: int
    since: float
    expires: float


class Exchange:
    """The server's correspondence with the sites over a whole run.

    Sites outside `sites` are never asked, online or not. Answers are taken in one at a time.
    An answer to an earlier round is logged as `site-late` and set aside.

    Args:
        sites: Node id to site name, all that may take part.
        transport: The network.
        heads: Ledger heads to tell the sites.
        log: Where events go.
        clock: Time.
        patience: How to wait.
    """

    def __init__(
        self,
        sites: dict[int, str],
        transport: Transport,
        heads: HeadBook,
        log: Log,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._sites, self._transport, self._heads = sites, transport, heads
        self._log, self._clock, self._patience = log, clock, patience
        self._sent: dict[str, _Sent] = {}
        self._delivered: dict[str, int] = {}
        self._away: set[str] = set()
        self._connected: dict[str, str] = {}
        self._asked_at: dict[str, str] = {}
        self._hashes: dict[tuple[str, int], str] = {}
        self.seen_heads: dict[str, LedgerHead] = {}

    def wait_for_sites(
        self, least: int, seconds: float, refused: Collection[str] = frozenset()
    ) -> None:
        """Return once enough sites are online.

        Args:
            least: How many.
            seconds: How long to wait for them.
            refused: Sites that do not count, since they have refused what is to be asked.

        Raises:
            CoordinatorError: Too few are when the time is up; names those that are missing.
        """
        give_up, before = self._clock.monotonic() + seconds, None
        # Where the others are not enough in number, nothing is gained by waiting for all of them.
        least = min(least, len(self._sites) - len(refused))
        while True:
            online = {node: s for node, s in self._online().items() if s not in refused}
            missing = sorted(set(self._sites.values()) - set(online.values()) - set(refused))
            if len(online) >= least:
                return
            if missing != before:
                before = missing
                present = sorted(online.values())
                self._log("waiting-for-sites", needed=least, online=present, missing=missing)
            if self._clock.monotonic() >= give_up:
                raise CoordinatorError(
                    f"only {len(online)} of at least {least} sites came online in {seconds:g} s",
                    f"missing: {', '.join(missing)}",
                    "Ask these sites to start their nodes, then start the run again",
                )
            self._clock.sleep(self._patience.poll)

    def ask(self, question: Question) -> None:
        """Ask every online site that has not delivered, and wait for the answers.

        Returns when every site that was asked has answered or had its time, and none can
        still come to take part. Then each site has an entry in `question.answers`.
        """
        question.answers = {s: a for s, a in question.answers.items() if a.delivered}
        question.first, question.since = {}, {}
        self._send(question, self._online())
        while True:
            self._collect(question)
            if not self._waiting(question):
                break
            self._clock.sleep(self._patience.poll)
            self._send_again(question)
        for site in set(self._sites.values()) - question.answers.keys():
            away = "offline, and not back" if site in self._away else "no answer"
            late = Answer("late", f"{away} within {question.seconds:g} s")
            asked = site in question.since
            question.answers[site] = late if asked else Answer("absent", "not online")

    def _waiting(self, question: Question) -> bool:
        """Tell whether a site still has time to answer, or could still come to take part."""
        now = self._clock.monotonic()
        for site in self._sites.values():
            asked = question.since.get(site)
            if asked is not None and site not in question.answers:
                if now < asked + question.seconds:
                    return True
            elif now < question.open_until and question.undecided(site):
                return True
        return False

    def _online(self) -> dict[int, str]:
        """Return the sites that are online, and log who went and who came back."""
        nodes = self._transport.nodes()
        online = {node: site for node, site in self._sites.items() if node in nodes}
        self._connected = {site: nodes[node] for node, site in online.items()}
        away = set(self._sites.values()) - set(online.values())
        for site in sorted(away ^ self._away):
            self._log("site-offline" if site in away else "site-online", site=site)
        self._away = away
        return online

    def _send_again(self, question: Question) -> None:
        """Ask sites that can take part only now: come online, approved, or restarted."""
        was_away, online, now = self._away, self._online(), self._clock.monotonic()
        to = {}
        for node, site in online.items():
            asked, silent = question.since.get(site), site not in question.answers
            # A node that was restarted has lost its message; one that was only cut off
            # answers the second from what it kept, at no privacy cost.
            anew = site in was_away or self._connected[site] != self._asked_at.get(site)
            in_time = now < question.first.get(site, now) + question.seconds
            back = asked is not None and silent and anew and in_time
            joins = now < question.open_until and question.undecided(site)
            if back or (joins and (asked is None or now >= asked + self._patience.ask_again)):
                to[node] = site
        self._send(question, to)

    def _send(self, question: Question, to: dict[int, str]) -> None:
        number, life = question.request.round, question.seconds * self._patience.grace
        for node, site in to.items():
            if site in question.answers and question.answers[site].delivered:
                continue
            question.answers.pop(site, None)
            known, signature = self._heads.known(site)
            attempt = question.asked[site]
            update = {
                "known_head": known.head if known else None,
                "known_studies": known.studies if known else (),
                "countersignature": signature,
                "attempt": attempt,
                "counted": question.counted.get(site, 0),
            }
            request = question.request.model_copy(update=update)
            question.since[site] = now = self._clock.monotonic()
            question.first.setdefault(site, now)
            self._asked_at[site] = self._connected[site]
            question.asked[site] += 1
            try:
                message = self._transport.send(node, request, question.weights, life)
            except ConsiliumError as error:
                self._fail(question, site, str(error))
                continue
            self._sent[message] = _Sent(node, site, number, now, now + life)
            self._log("site-sent", round=number, site=site, attempt=attempt)

    def _collect(self, question: Question) -> None:
        for received in self._transport.receive(list(self._sent)):
            sent = self._sent.pop(received.message, None)
            if sent is None:
                continue
            if received.reply is not None and received.node == sent.node:
                self._note_head(sent.site, received.reply, sent.round)
            if self._delivered.get(sent.site, -1) < sent.round:
                self._take(received, sent, question)
        now = self._clock.monotonic()
        self._sent = {key: sent for key, sent in self._sent.items() if now < sent.expires}

    def _take(self, received: Received, sent: _Sent, question: Question) -> None:
        """Sort one answer into the question it belongs to."""
        number, site, reply = question.request.round, sent.site, received.reply
        genuine = received.node == sent.node
        if sent.round != number:
            outcome = reply.outcome if reply else received.error
            self._log("site-late", round=sent.round, site=site, outcome=outcome)
        elif received.offline:
            # Not its answer: it is asked again when it is back, and late if it is not in time.
            self._log("site-lost", round=number, site=site)
        elif reply is None:
            # Of a site that was asked again, only the last message's fate counts.
            if sent.since == question.since.get(site):
                self._fail(question, site, received.error)
        elif not genuine:
            self._fail(question, site, "another node answered in its place")
        elif reply.version != PROTOCOL_VERSION:
            self._fail(question, site, _other_release(reply.version))
        elif reply.refusal is not None:
            question.answers[site] = Answer("refused", reply.refusal.code, reply)
            told = {"text": reply.refusal.text} if reply.refusal.text else {}
            self._log("site-refused", round=number, site=site, code=reply.refusal.code, **told)
        elif reason := question.take(site, reply, received.update):
            self._log("update-rejected", round=number, site=site, reason=reason)
            question.answers[site] = Answer("failed", f"rejected: {reason}", reply)
        else:
            self._delivered[site] = number
            question.answers[site] = Answer(DONE[question.request.task], reply=reply)
            spent = reply.spending.epsilon if reply.spending else None
            self._log("site-replied", round=number, site=site, epsilon=spent, resent=reply.resent)

    def _fail(self, question: Question, site: str, error: str) -> None:
        question.answers[site] = Answer("failed", error)
        self._log("site-failed", round=question.request.round, site=site, error=error)

    def _note_head(self, site: str, reply: Reply, number: int) -> None:
        """Remember a site's head, unless it cannot follow what was seen of the site before.

        Two heads of as many entries are two ledgers: copies of a node that both answer. Neither
        counts what the other spends, so both must stop, and be told a head that neither has.
        """
        head = reply.head
        if head is None:
            return
        other = self._hashes.setdefault((site, head.entries), head.hash)
        reason = self._heads.objection(site, head)
        if other != head.hash:
            reason = f"two ledgers of {head.entries} entries answer for it"
            self._heads.confirm({site: fork_head(head, other)}, reply.study_digest)
        if reason:
            self._log("ledger-conflict", round=number, site=site, reason=reason)
        # One not believed still says that the site has answered in this study; and of a site
        # that was asked twice, the older answer may come last.
        seen = self.seen_heads.setdefault(site, head)
        if not reason and head.entries > seen.entries:
            self.seen_heads[site] = head


def _other_release(version: int) -> str:
    return (
        f"the site runs an older release: its node speaks version {version} of the protocol, this "
        f"server version {PROTOCOL_VERSION}; ask the site to upgrade"
    )
