"""The one error tree: what happened, where, and what to do next, grouped by who must act."""

from __future__ import annotations


class ConsiliumError(Exception):
    """Base of every error a user may see.

    Args:
        what: What happened, as one short clause.
        where: The file, key, site or address it happened at (may be empty).
        todo: What the reader should do next.
    """

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(what, where, todo)

    def __str__(self) -> str:
        """Return the error as one line, the form the command line prints."""
        line = self.what if not self.where else f"{self.what} ({self.where})"
        return f"{line}. {self.todo}" if self.todo else f"{line}."


class StudyError(ConsiliumError):
    """The study file is wrong; its author must act."""


class SiteError(ConsiliumError):
    """Something at the hospital is wrong: files, rights, keys; hospital IT must act."""


class DataError(ConsiliumError):
    """The hospital's images or labels cannot be used as they are."""


class LedgerError(ConsiliumError):
    """The privacy ledger cannot vouch for what was spent; training must stop."""


class PolicyRefusal(ConsiliumError):
    """The site's own policy forbids what was asked.

    Args:
        code: The reason code that may travel to the coordinator (see `protocol.RefusalCode`).
        what: What was refused; stays at the site.
        where: The policy key or study.
        todo: The remedy.
        told: What a person at the site has decided to tell the coordinator beside the code.
    """

    def __init__(
        self, code: str, what: str, where: str = "", todo: str = "", told: str = ""
    ) -> None:
        self.code, self.told = code, told
        super().__init__(what, where, todo)


class CoordinatorError(ConsiliumError):
    """Something at the server is wrong; the coordinator must act."""


class ProtocolError(ConsiliumError):
    """A message does not have the agreed form; it is refused whole."""


class SimulationError(ConsiliumError):
    """A scenario or the data it names is wrong; the researcher must act."""
