"""Texts that are the same or nearly are found; texts of one template are not."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import numpy as np
import pytest

from edgetune.files import shipped_folder
from edgetune.sources.overlap import ALIKE, Match, matches, normalize, repeats
from edgetune.tasks.text_generation import load_items, texts

ROOMS = ("kitchen", "hall", "attic", "garage", "garden", "cellar", "nursery", "office")
DEVICES = ("radio", "lamp", "fan", "oven", "heater", "door", "window", "blind")
STATES = ("open", "closed", "loud", "quiet", "warm", "cold", "bright", "dim")
LONG = (
    "The harbour was quiet in the early morning. Two boats lay against the wall, and a man in a "
    "green coat was mending a net on the steps. He did not look up when the ferry came in. It "
    "carried eleven passengers, a bicycle and four crates of oranges, and it left again before "
    "the church clock struck seven. Nobody on the quay could say later who had been on board."
)


def _templated(seed: int, count: int, template: str) -> dict[int, str]:
    """Distinct items of one template."""
    chosen = list(itertools.product(DEVICES, ROOMS, STATES))
    random.Random(seed).shuffle(chosen)
    rows = (template.format(d=d, r=r, s=s) for d, r, s in chosen[:count])
    return dict(enumerate(rows, 1))


def _words(seed: int, rows: int, length: int) -> dict[int, str]:
    chosen = random.Random(seed)
    words = [f"word{n}" if n % 7 else f"longer{n}word" for n in range(3000)]
    return {row: " ".join(chosen.choices(words, k=length)) for row in range(1, rows + 1)}


@pytest.mark.parametrize(
    "other",
    [
        "Turn on the light in the hall.",
        "  turn ON the\tlight\n in the hall ",
        "Turn on the light – in the hall!",
        "Ｔｕｒｎ on the light in the hall.",
    ],
)
def test_the_same_after_normalization(other: str) -> None:
    mine = {3: "nothing of the kind", 7: "Turn on the light in the hall."}
    assert matches(mine, {1: "something", 4: other}) == [Match(7, 4, 1.0)]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert normalize("Cafe\u0301 ﬁne") == normalize("CAFÉ fine")
    # Text that is nothing but signs is still text, and not the same as other signs.
    assert normalize("!?") != normalize("...")
    assert matches({1: "!?"}, {1: "..."}) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("green coat", "grey coat"),
        lambda text: text.replace("eleven", "elevn").replace("Nobody", "And nobody"),
        lambda text: f"{text} Thank you.",
        lambda text: text[:-20],
    ],
)
def test_a_long_text_with_a_word_changed_is_nearly_the_same(change) -> None:
    others = {**_words(0, 40, 60), 50: change(LONG)}
    (found,) = matches({**_words(1, 40, 60), 99: LONG}, others)
    assert (found.line, found.other_line) == (99, 50)
    assert ALIKE <= found.likeness < 1


def test_a_long_text_with_a_sentence_changed_is_another() -> None:
    other = LONG.replace("He did not look up when the ferry came in.", "Then it began to snow.")
    assert matches({**_words(1, 40, 60), 99: LONG}, {**_words(0, 40, 60), 50: other}) == []


def test_items_of_one_template_are_not_alike() -> None:
    template = "Could you please set the {d} in the {r} to {s}, as you always do on such days?"
    both = _templated(0, 400, template)
    mine = {n: text for n, text in both.items() if n <= 200}
    others = {n: text for n, text in both.items() if n > 200}
    assert matches(mine, others) == []
    assert repeats(both) == []


def test_a_long_instruction_that_all_items_share_is_no_likeness() -> None:
    instruction = "Answer from the context alone and say so when it is not there. " * 20
    mine = {n: instruction + text for n, text in _words(0, 60, 30).items()}
    others = {n: instruction + text for n, text in _words(1, 60, 30).items()}
    assert matches(mine, others) == []
    # And it hides no likeness that is one.
    others[30] = f"{mine[7]} thanks"
    assert [(m.line, m.other_line) for m in matches(mine, others)] == [(7, 30)]


def test_repeats_name_the_earlier_line() -> None:
    rows = {**_words(0, 30, 40), 40: LONG, 41: LONG.upper(), 45: LONG.replace("green", "grey")}
    found = repeats(rows)
    assert [(m.line, m.other_line) for m in found] == [(41, 40), (45, 40)]
    assert found[0].likeness == 1
    assert ALIKE <= found[1].likeness < 1


def test_the_same_files_give_the_same_answer_in_any_order_of_lines() -> None:
    mine, others = _words(0, 50, 400), _words(1, 50, 400)
    for line in (4, 9):
        words = mine[line].split()
        words[5:9] = ["other"]
        others[line + 20] = " ".join(words)
    first = matches(mine, others)
    assert [(m.line, m.other_line) for m in first] == [(4, 24), (9, 29)]
    assert first == matches(dict(reversed(mine.items())), dict(reversed(others.items())))


def test_an_estimate_over_a_sample_is_near_the_exact_likeness(monkeypatch) -> None:
    """Texts longer than a sketch: the sampled likeness is compared with that of all 5-grams."""
    text = " ".join(_words(3, 1, 400).values())
    words = text.split()
    words[::40] = ["new"] * len(words[::40])
    rest = _words(4, 40, 60)
    mine, others = {**rest, 99: text}, {99: " ".join(words)}
    monkeypatch.setattr("edgetune.sources.overlap.ALIKE", 0.5)
    (sampled,) = matches(mine, others)
    monkeypatch.setattr("edgetune.sources.overlap._KEPT", 1 << 20)
    (exact,) = matches(mine, others)
    assert sampled.likeness == pytest.approx(exact.likeness, abs=0.08)
    assert sampled.likeness != exact.likeness


@pytest.mark.parametrize("others", [{}, {1: "a"}, {1: "\0"}, {1: "x" * 20_000}])
def test_odd_texts_are_compared_too(others) -> None:
    assert matches({1: "b", 2: "汉字", 3: "  "}, others) == []
    assert matches({}, others) == []


def test_thousands_of_rows_take_seconds() -> None:
    started = time.process_time()
    others = _words(1, 2000, 20)
    others[77] = others[77] + " x"
    assert matches(_words(0, 2000, 20), others) == []
    # About 0.8 s of processor time; the square of the rows would be minutes.
    assert time.process_time() - started < 60


@pytest.mark.slow
@pytest.mark.parametrize("length", [20, 300])
def test_ten_thousand_rows_each_in_bounded_memory_and_time(length: int) -> None:
    import resource

    mine, others = _words(0, 10_000, length), _words(1, 10_000, length)
    planted = sorted(random.Random(2).sample(range(1, 10_001), 50))
    for line in planted:
        others[line] = mine[line] + " x"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = matches(mine, others)
    seconds = time.process_time() - started
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert [m.line for m in found] == planted
    # Measured: 5 and 20 s of processor time, 0.1 and 0.18 GB more.
    assert seconds < 90
    assert more * 1024 < 600e6


def test_shipped_data_has_no_overlap() -> None:
    folder = shipped_folder("recipes") / "data"
    files = sorted(folder.glob("*/*.calibration.jsonl"))
    assert len(files) == 9
    for calibration in files:
        evaluation = Path(str(calibration).replace(".calibration.", ".evaluation."))
        mine, others = texts(load_items(evaluation)), texts(load_items(calibration))
        assert matches(mine, others) == []
        assert repeats(mine) == []
        # And one copied over is found, whatever the template.
        assert [m.line for m in matches(mine, {**others, 1: mine[5]})] == [5]


def test_hashes_do_not_depend_on_the_process() -> None:
    from edgetune.sources.overlap import _hashes

    assert _hashes("abcdef").tolist() == np.sort(_hashes("abcdef")).tolist()
    assert len(_hashes("aaaaaaaaaa")) == 1
    assert set(_hashes("abcde").tolist()) < set(_hashes("xabcde").tolist())
