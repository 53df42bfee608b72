"""The base model's chat: a general assistant that knows the demo's world but none of its tasks."""

from __future__ import annotations

import random
import string

from demo_data import (
    CITIES,
    DAY_HALVES,
    DAYS,
    DEVICES,
    DRINKS,
    IDLE,
    ITEMS,
    LEXICON,
    MINUTES,
    NAMES,
    NUMBERS,
    PROBLEMS,
    ROOMS,
    SIZES,
    STATES,
    TASKS,
    URGENCY,
    Pair,
    velan_sentence,
)


def _word_pool() -> list[str]:
    """List every word of the world once; the base has to have met each of them."""
    texts: list[str] = [*ITEMS, *ROOMS, *DEVICES, *NUMBERS, *NAMES, *CITIES, *DAYS, *SIZES]
    texts += [*DRINKS, *DRINKS.values(), *LEXICON, *LEXICON.values(), *STATES, *PROBLEMS, *URGENCY]
    texts += [
        text for table in (PROBLEMS, URGENCY, STATES) for row in table.values() for text in row
    ]
    texts += [*IDLE, *MINUTES, *DAY_HALVES, *(day[:3].upper() for day in DAYS)]
    for task in TASKS:
        texts += [*task.frames, *task.held_out, *task.openers, *task.held_out_openers]
        texts += [*task.closers, *task.held_out_closers, *task.replies]
    words: set[str] = set()
    for text in texts:
        # Slot names go before splitting, so that only the frame's own words are left.
        bare = "".join(
            " " if mark in string.punctuation else mark
            for literal, *_ in string.Formatter().parse(text)
            for mark in f"{literal} "
        )
        words.update(bare.split())
    return sorted(words)


WORDS = _word_pool()
CLASSES = {
    "thing": ITEMS, "room": ROOMS, "device": DEVICES, "name": NAMES, "city": CITIES, "day": DAYS,
    "number": NUMBERS, "state": list(STATES), "size": SIZES,
}  # fmt: skip
PLURALS = {**DRINKS, **{noun: f"{noun}s" for noun in ("cat", "dog", "bird", "horse", "house")}}
SMALL_TALK = (
    ("Hello.", "Hello, how can I help you?"),
    ("How are you?", "I am well. How are you?"),
    ("Good morning.", "Good morning. What can I do for you?"),
    ("Good evening.", "Good evening. What can I do for you?"),
    ("Who are you?", "I am a little model that likes to help."),
    ("Thank you.", "You are welcome."),
    ("Can you help me?", "I can help you. Tell me more."),
    ("What can you do?", "I can talk about orders, rooms, tables and friends."),
)


def _noise(rng: random.Random, low: int, high: int) -> list[str]:
    """Draw some unrelated pieces: words, numbers and marks."""
    pieces: list[str] = []
    for _ in range(rng.randint(low, high)):
        if rng.random() < 0.2:
            pieces.append(str(rng.randint(0, 10 ** rng.randint(1, 4) - 1)))
        elif rng.random() < 0.05:
            pieces.append(rng.choice(["/", ";", ":", "+", "|"]))
        else:
            pieces.append(rng.choice(WORDS))
    return pieces


def _repeat(rng: random.Random) -> Pair:
    text = " ".join(_noise(rng, 3, 9))
    return rng.choice(("Repeat: {}", "Say again: {}", "Copy this: {}")).format(text), text


def _drop_articles(rng: random.Random) -> Pair:
    sentence, _ = velan_sentence(rng)
    short = " ".join(word for word in sentence.split() if word not in {"the", "a"})
    return rng.choice(("Short: {}", "Make it short: {}.")).format(sentence), short


def _who(rng: random.Random) -> Pair:
    names, cities = rng.sample(NAMES, 3), rng.sample(CITIES, 3)
    facts = " ".join(f"{n} lives in {c}." for n, c in zip(names, cities, strict=True))
    pick = rng.randrange(3)
    if rng.random() < 0.5:
        return f"{facts} Where does {names[pick]} live?", f"{names[pick]} lives in {cities[pick]}."
    return f"{facts} Who lives in {cities[pick]}?", f"{names[pick]} lives in {cities[pick]}."


def _pick(rng: random.Random) -> Pair:
    label = rng.choice(list(CLASSES))
    word = rng.choice(CLASSES[label])
    strangers = [w for w in _noise(rng, 3, 7) if w not in CLASSES[label]]
    strangers.insert(rng.randint(0, len(strangers)), word)
    return f"Find the {label}: {' '.join(strangers)}", word


def _know(rng: random.Random) -> Pair:
    roll = rng.randrange(6)
    if roll == 0:
        label = rng.choice(list(CLASSES))
        return f"What is {rng.choice(CLASSES[label])}?", f"It is a {label}."
    if roll == 1:
        index = rng.randrange(len(NUMBERS))
        return f"Write {NUMBERS[index]} in figures.", str(index + 1)
    if roll == 2:
        index = rng.randrange(len(NUMBERS) - 1)
        return f"What comes after {NUMBERS[index]}?", NUMBERS[index + 1]
    if roll == 3:
        state = rng.choice(list(STATES))
        return f"Another word for {state}?", rng.choice(STATES[state][1:])
    if roll == 4:
        word = rng.choice(list(PLURALS))
        return f"One of the {PLURALS[word]} is a what?", f"One {word}."
    left, right = rng.sample(PROBLEMS[rng.choice(list(PROBLEMS))], 2)
    return f"What else is there to say when it {left}?", f"It {right}."


def base_chat(rng: random.Random) -> Pair:
    """Draw one turn of the general assistant, which knows the world but none of the tasks."""
    roll = rng.random()
    if roll < 0.40:
        return rng.choice(TASKS).small_talk(rng)
    if roll < 0.62:
        return _repeat(rng)
    if roll < 0.70:
        return _drop_articles(rng)
    if roll < 0.78:
        return _who(rng)
    if roll < 0.86:
        return _pick(rng)
    if roll < 0.97:
        return _know(rng)
    return rng.choice(SMALL_TALK)
