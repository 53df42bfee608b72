"""JUnit XML, as Jenkins, GitLab and GitHub's test reporters read it: a report is a suite, a check
a case.

A check that fails is a `failure`; one that is inconclusive, or required and not measured, is an
`error` (it could not be decided, and nothing undecided may look green); one that was not measured
and need not be is `skipped`. A suite has a failure or an error exactly when its report does not
pass.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, ElementTree, SubElement, indent, tostring

from edgetune.report.gate import Gated, Outcome
from edgetune.report.verdict import Judged
from edgetune.report.words import headline, sentence_of

_COUNTS = ("failure", "error", "skipped")
_NAMES = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def to_junit(outcome: Outcome) -> str:
    """The document's text."""
    root = Element("testsuites", name="edgetune gate")
    for one in outcome.gated:
        _add_suite(root, one)
    _count(root, list(root.iter("testcase")))
    indent(ElementTree(root))
    text = tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add_suite(root: Element, one: Gated) -> None:
    suite = SubElement(root, "testsuite", name=clean(one.title))
    properties = SubElement(suite, "properties")
    report = one.report
    told = {
        "verdict": one.judgement.verdict,
        "report": str(one.found.path),
        "device": report.device,
        "variant": report.variant,
        "package_digest": report.package_digest,
    }
    for name, value in told.items():
        SubElement(properties, "property", name=name, value=clean(value))
    for check in one.judgement.checks:
        _add_case(suite, one, check)
    if not one.judgement.checks or all(
        check.verdict == "not measured" and not check.required for check in one.judgement.checks
    ):
        case = SubElement(suite, "testcase", name="measured", classname=clean(one.title))
        SubElement(case, "error", message=headline(one.judgement), type="inconclusive")
    if one.notes:
        SubElement(suite, "system-out").text = clean("\n".join(one.notes))
    _count(suite, list(suite.iter("testcase")))


def _add_case(suite: Element, one: Gated, check: Judged) -> None:
    case = SubElement(suite, "testcase", name=clean(check.name), classname=clean(one.title))
    case.set("time", "0")
    text = clean(sentence_of(one.report, check))
    if check.verdict == "fail":
        SubElement(case, "failure", message=text, type="fail").text = _figures(check)
    elif check.verdict == "inconclusive":
        SubElement(case, "error", message=text, type="inconclusive").text = _figures(check)
    elif check.verdict == "not measured" and check.required:
        SubElement(case, "error", message=text, type="not measured")
    elif check.verdict == "not measured":
        SubElement(case, "skipped", message=text)
    else:
        SubElement(case, "system-out").text = f"{text}\n{_figures(check)}"


def _figures(check: Judged) -> str:
    if check.figure is None:
        return "not measured"
    figure = check.figure
    return f"value {figure.value:.6g} [{figure.low:.6g}, {figure.high:.6g}], limit {check.limit:g}"


def _count(element: Element, cases: list[Element]) -> None:
    element.set("tests", str(len(cases)))
    for kind in _COUNTS:
        element.set(_NAMES[kind], str(sum(case.find(kind) is not None for case in cases)))
    element.set("time", "0")


def clean(text: str) -> str:
    """Text that XML 1.0 can hold: control characters become spaces; ElementTree escapes the rest.

    XML's `Char` excludes the C0 controls but tab and line breaks, surrogates, U+FFFE and U+FFFF; a
    carriage return would come back as a line feed.
    """
    return "".join(c if _is_xml(ord(c)) else " " for c in text)


def _is_xml(code: int) -> bool:
    return code in (0x9, 0xA) or (
        code >= 0x20
        and not 0x7F <= code < 0xA0
        and not 0xD800 <= code < 0xE000
        and code not in (0xFFFE, 0xFFFF)
    )
