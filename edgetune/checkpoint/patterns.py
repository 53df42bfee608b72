"""The regular expressions of an adapter's config, tried before anything else does.

PEFT matches them against every module's name, and so does this package. A pattern out of an
untrusted file may be none, or take for ever; the clock is the judge of that, for no rule tells the
slow ones from the long ones that people write. Standard library only.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MOST_SECONDS = 1.0  # for all patterns and modules; a sound one takes milliseconds
_MOST_CHARACTERS = 20_000

_PLAIN = re.compile(r"[\w.-]*")  # matches in a time that grows with its length
_KEY = r"(.*\.)?({})$"
# (field, the compiled expression's method, the expression around a key)
_FORMS = (
    ("target_modules", "fullmatch", "{}"),
    ("exclude_modules", "fullmatch", "{}"),
    ("feedforward_modules", "fullmatch", "{}"),
    ("rank_pattern", "match", _KEY),
    ("rank_pattern", "search", "{}"),
    ("alpha_pattern", "match", _KEY),
    ("lambda_pattern", "match", _KEY),
    ("n_frequency_pattern", "match", _KEY),
    ("n_frequency_pattern", "match", r".*\.{}$"),
    ("block_size_pattern", "match", r".*\.{}$"),
    ("layers_pattern", "match", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
    ("modules_to_save", "match", r"(^|.*\.){}($|\..*)"),
)


class _TooSlowError(Exception):
    """The clock's word, raised inside the matching."""


def pattern_problem(config: Mapping[str, Any], modules: Iterable[str]) -> str | None:
    """Which pattern of an adapter_config.json is no regular expression, or takes too long on
    these modules' names, as a sentence. `config` has the right types (`type_problem`)."""
    names = sorted({name for module in modules for name in _with_parents(module)})
    field = ""
    try:
        with _deadline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for field, pattern, matches in _patterns(config):
                if len(pattern) > _MOST_CHARACTERS:
                    return f"{field} is a pattern of {len(pattern)} characters"
                match = getattr(re.compile(pattern), matches)
                for name in names:
                    match(name)
    except (re.error, RecursionError, OverflowError, MemoryError) as why:
        return f"{field} is no regular expression ({' '.join(str(why).split())[:200]})"
    except _TooSlowError:
        return f"{field} is a pattern that takes more than {_MOST_SECONDS:g} second to match"
    return None


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(field, expression, how it is matched) as PEFT 0.21 puts it together for its types
    (tuners/tuners_utils.py, utils/other.py, the types' own model.py); no names that are plain."""
    for field, matches, form in _FORMS:
        keys = config.get(field) or []
        if isinstance(keys, list) and matches == "fullmatch":
            continue  # the ends of names, compared as they are
        if matches == "search" and config.get("peft_type") != "OSF":
            continue
        for key in [keys] if isinstance(keys, str) else keys:
            if len(key) > _MOST_CHARACTERS or not _PLAIN.fullmatch(key):
                yield field, form.replace("{}", key), matches


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Raise _TooSlowError in the block after its time. The matching looks for signals now and
    then; outside the main thread there are none, and no deadline."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_slow(_signal: int, _frame: object) -> None:
        raise _TooSlowError

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
