"""GitHub workflow commands: what failed as errors, what is unclear as warnings, what passed as a
notice.

The runner shows ten annotations of a type for a step and drops the rest without a word; so the
tenth says how many more there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.gate import Outcome
from edgetune.report.words import headline, sentence_of

MOST_OF_A_TYPE = 10
# Of a message; a screen shows less.
_MOST_CHARACTERS = 500


def to_annotations(outcome: Outcome) -> list[str]:
    """`::error title=…::…` lines, at most ten of each type."""
    lines: list[str] = []
    for kind, found in (
        ("error", list(_errors(outcome))),
        ("warning", list(_warnings(outcome))),
        ("notice", list(_notices(outcome))),
    ):
        if len(found) > MOST_OF_A_TYPE:
            shown = found[: MOST_OF_A_TYPE - 1]
            more = f"{len(found) - len(shown)} more, see the table or the summary"
            found = [*shown, ("edgetune gate", more)]
        lines += [_command(kind, title, text) for title, text in found]
    return lines


def _errors(outcome: Outcome) -> Iterator[tuple[str, str]]:
    for one in outcome.gated:
        for check in one.judgement.checks:
            if check.verdict == "fail":
                yield f"{one.title}: {check.name}", sentence_of(one.report, check)


def _warnings(outcome: Outcome) -> Iterator[tuple[str, str]]:
    for one in outcome.gated:
        for check in one.judgement.checks:
            missed = check.verdict == "not measured" and check.required
            if check.verdict == "inconclusive" or missed:
                yield f"{one.title}: {check.name}", sentence_of(one.report, check)
        if all(c.verdict == "not measured" and not c.required for c in one.judgement.checks):
            yield one.title, headline(one.judgement)
    for one in outcome.gated:
        yield from ((one.title, note) for note in one.notes)


def _notices(outcome: Outcome) -> Iterator[tuple[str, str]]:
    for one in outcome.gated:
        if one.judgement.verdict == "pass":
            yield one.title, headline(one.judgement)


def _command(kind: str, title: str, text: str) -> str:
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 1]}…"
    return f"::{kind} title={escape_property(title)}::{escape(text)}"


def escape(text: str) -> str:
    """A message as the runner reads it back (actions/toolkit, command.ts: escapeData), other
    control characters left out."""
    clean = "".join(c if c.isprintable() or c in "\r\n" else " " for c in text)
    return clean.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A property's value (escapeProperty): colon and comma end one."""
    return escape(text).replace(":", "%3A").replace(",", "%2C")
