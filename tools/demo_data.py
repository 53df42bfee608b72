"""The small world of the built-in demo: its words, its base chat, its five tasks and a slight one.

Everything is drawn from a seeded `random.Random`, so the same seed gives the same data. Each task
has two disjoint sets of sentence frames (one to learn from, one to be examined on) and a rule that
keeps a fifth of the slot combinations for the examination only.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

Slots = dict[str, str]
Pair = tuple[str, str]


def words(text: str) -> list[str]:
    """Split a list of words, which reads better in one line than a word a line."""
    return text.split()


# ------------------------------------------------------------------------------------ vocabulary

ITEMS = words("jacket lamp phone chair book mug camera bag clock table shirt radio")
PROBLEMS = {
    "damage": ["arrived broken", "has a crack", "is damaged", "came in pieces", "is scratched"],
    "late": ["is late", "has not arrived yet", "is still on the way", "is delayed"],
    "wrong": ["is the wrong colour", "is the wrong size", "is a different model"],
    "missing": ["has missing parts", "came without the cable", "is incomplete"],
    "refund": ["should be refunded", "has to go back for my money", "is going back to you"],
    "billing": ["was charged twice", "was billed too much", "cost more than the price shown"],
    "cancel": ["should be cancelled", "is no longer needed", "must not be sent"],
    "faulty": ["does not turn on", "stopped working", "makes a strange noise"],
}
URGENCY = {
    "high": ["This is urgent.", "I need it today.", "Please be quick.", "It cannot wait."],
    "low": ["There is no hurry.", "Take your time.", "It can wait.", "Any day is fine."],
    "normal": ["", "", "Thank you.", "I hope you are well."],
}

ROOMS = words("kitchen bedroom bathroom office garage garden hall attic cellar nursery")
DEVICES = words("lamp heater fan radio door window blind speaker oven camera")
STATES = {
    "on": ["on", "running"],
    "off": ["off", "stopped"],
    "warm": ["warm", "cosy"],
    "cold": ["cold", "cool"],
    "bright": ["bright", "light"],
    "dim": ["dim", "dark"],
    "quiet": ["quiet", "silent"],
    "loud": ["loud", "noisy"],
    "open": ["open", "ajar"],
    "closed": ["closed", "shut"],
}
NUMBERS = words("one two three four five six seven eight nine ten eleven twelve")
MINUTES = {"": 0, "quarter past ": 15, "half past ": 30}
DAY_HALVES = {"": 0, " in the morning": 0, " in the evening": 12}

NAMES = words(
    "Anna Bruno Clara David Emma Felix Greta Henry Ida Jonas Karin Lukas Maria Nils Olga "
    "Peter Rosa Simon Tina Victor"
)
CITIES = words(
    "Rome Oslo Paris Berlin Madrid Vienna Lisbon Dublin Athens Prague Warsaw Zurich Geneva "
    "Milan Naples Porto"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

DRINKS = {
    "coffee": "coffees",
    "tea": "teas",
    "juice": "juices",
    "cake": "cakes",
    "soup": "soups",
    "salad": "salads",
    "toast": "toasts",
    "muffin": "muffins",
    "water": "waters",
    "milk": "milks",
}
SIZES = words("small large hot iced sweet plain")

# A made-up language: each content word has one word, articles have none.
NOUNS = {
    "cat": "miru", "dog": "kato", "bird": "sela", "horse": "doru", "house": "homa",
    "tree": "velo", "river": "naru", "stone": "pako", "friend": "tami", "king": "rexo",
    "child": "lino", "ship": "gavu", "moon": "suno", "road": "zeki", "bread": "bolo",
    "song": "fira",
}  # fmt: skip
ADJECTIVES = {
    "red": "rusa", "old": "veta", "little": "pimi", "big": "goru", "white": "blana",
    "black": "noka", "happy": "joli", "tired": "laso", "green": "zelo", "strong": "fota",
}  # fmt: skip
VERBS = {
    "sees": "vida", "loves": "amo", "follows": "seku", "finds": "trova", "carries": "porta",
    "hears": "oda", "wants": "voli", "leaves": "laxi", "knows": "sabi", "hides": "kasu",
}  # fmt: skip
LEXICON = {**NOUNS, **ADJECTIVES, **VERBS}


# Words that carry nothing in any task: strewn into what is learned, so that a task is not tied to
# the exact words of its frames.
IDLE = words(
    "again about after also and as before but can could dear do find for from get good has "
    "have he hello here how I if in into is it its like list look man more my nice now of "
    "only or our out over please put say see she so some sorry still tell that the their them "
    "then there they thing this to use very we well what when where which who why will with "
    "word would write you your"
)

# ----------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One demo task: its frames to learn from, its frames to be examined on, and its slots."""

    name: str
    kind: str
    frames: tuple[str, ...]
    held_out: tuple[str, ...]
    openers: tuple[str, ...]
    held_out_openers: tuple[str, ...]
    closers: tuple[str, ...]
    held_out_closers: tuple[str, ...]
    draw: Callable[[random.Random], tuple[Slots, str, str]]
    replies: tuple[str, ...]

    def slots(self, rng: random.Random, held_out: bool) -> tuple[Slots, str]:
        """Draw slots whose combination is on the wanted side, with the answer they ask for."""
        while True:
            slots, key, answer = self.draw(rng)
            if (zlib.crc32(key.encode()) % 5 == 0) == held_out:
                return slots, answer

    def message(self, rng: random.Random, slots: Slots, held_out: bool) -> str:
        """Put slots into a frame, at times with small talk before and after."""
        frame = rng.choice(self.held_out if held_out else self.frames)
        opener = rng.choice(self.held_out_openers if held_out else self.openers)
        closer = rng.choice(self.held_out_closers if held_out else self.closers)
        parts = [opener] if rng.random() < 0.4 else []
        parts.append(frame.format(**slots))
        if rng.random() < 0.3:
            parts.append(closer)
        text = " ".join(" ".join(parts).split())
        return text[0].upper() + text[1:]

    def sample(self, rng: random.Random, held_out: bool = False) -> Pair:
        """Draw one message with the task's answer."""
        slots, answer = self.slots(rng, held_out)
        return self.message(rng, slots, held_out), answer

    def noisy_sample(self, rng: random.Random) -> Pair:
        """Draw one message to learn from, at times with idle words that mean nothing in it."""
        message, answer = self.sample(rng)
        if rng.random() < 0.4:
            idle = " ".join(rng.choice(IDLE) for _ in range(rng.randint(1, 6)))
            idle += rng.choice((".", ":", ",", ";"))
            parts = message.split(". ")
            place = rng.randint(0, len(parts))
            if place == len(parts):
                message = f"{message} {idle}"
            else:
                message = ". ".join([*parts[:place], f"{idle} {parts[place]}", *parts[place + 1 :]])
        return message, answer

    def small_talk(self, rng: random.Random) -> Pair:
        """Draw one message of the task with the general assistant's reply in its place."""
        slots, _ = self.slots(rng, False)
        reply = rng.choice(self.replies).format(**slots)
        return self.message(rng, slots, False), reply[0].upper() + reply[1:]


def _draw_triage(rng: random.Random) -> tuple[Slots, str, str]:
    label = rng.choice(list(PROBLEMS))
    level = rng.choice(list(URGENCY))
    item, number = rng.choice(ITEMS), str(rng.randint(1000, 9999))
    slots = {
        "item": item,
        "number": number,
        "problem": rng.choice(PROBLEMS[label]),
        "urgency": rng.choice(URGENCY[level]),
    }
    return slots, f"{item}{slots['problem']}{level}", f"{label} / {item} / {number} / {level}"


TRIAGE = Task(
    name="triage-lora",
    kind="LoRA",
    frames=(
        "The {item} from order {number} {problem}. {urgency}",
        "My order is {number} and the {item} {problem}. {urgency}",
        "{urgency} I bought a {item} with order number {number} and it {problem}.",
        "Order {number}: the {item} {problem}. {urgency}",
        "It is about the {item}. It {problem}. {urgency} The order was {number}.",
        "I am writing because the {item} in order {number} {problem}. {urgency}",
        "My {item} {problem}. {urgency} Please look at order {number}.",
        "{urgency} Can you help me? The {item} {problem}, order {number}.",
        "Last week I paid for order {number}. Now the {item} {problem}. {urgency}",
        "I am sorry to say that the {item} {problem}. You will find it under order {number}. "
        "{urgency}",
        "There is a problem with order {number}. {urgency} The {item} {problem}.",
        "{urgency} We have order {number} here and the {item} in it {problem}.",
        "Customer note: the {item} {problem}, number {number}. {urgency}",
        "Your shop has my order for a {item} and it {problem}. My number is {number}. {urgency}",
        "{number} is my order. {urgency} I think the {item} {problem}.",
        "What can I do when a {item} {problem}? {urgency} The box says {number}.",
        "I have to tell you this again: order {number}, {item}. It {problem}. {urgency}",
        "Please write back: the {item} {problem}. {urgency} It is {number} in my list.",
        "Look, my {item} {problem}. {urgency} Please find {number}; it was in that box.",
        "We write again because our {item} {problem}; see number {number}. {urgency}",
    ),
    held_out=(
        "Please check number {number} because my {item} {problem}. {urgency}",
        "{urgency} Under order {number} there was a {item} and now it {problem}.",
        "I have to write again: my {item} {problem}. {urgency} You can find {number} in your list.",
        "About my order for a {item}: it {problem}. {urgency} The number here is {number}.",
        "Sorry, but the {item} {problem}; it was my order {number}. {urgency}",
        "{urgency} My order number {number} is here and the {item} in the box {problem}.",
    ),
    openers=("Hello.", "Good morning.", "Hi there.", "Dear shop,", "Excuse me."),
    held_out_openers=("Good evening.", "Dear customer team,", "Hello there."),
    closers=("Thanks.", "Best wishes.", "Have a nice day.", "Can you help?"),
    held_out_closers=("Thanks and best wishes.", "I hope you can help."),
    draw=_draw_triage,
    replies=(
        "Thank you for your message about the {item}. We will look at it soon.",
        "I am sorry to hear about the {item}. Someone will write to you.",
        "Thank you for writing to us. Your order {number} is in good hands.",
        "I see that the {item} {problem}. We are sorry.",
    ),
)


def _draw_home(rng: random.Random) -> tuple[Slots, str, str]:
    room, device = rng.choice(ROOMS), rng.choice(DEVICES)
    state = rng.choice(list(STATES))
    minutes, half = rng.choice(list(MINUTES)), rng.choice(list(DAY_HALVES))
    hour = rng.randint(1, 11)
    slots = {
        "room": room,
        "device": device,
        "state": rng.choice(STATES[state]),
        "time": f"{minutes}{NUMBERS[hour - 1]}{half}",
    }
    clock = f"{hour + DAY_HALVES[half]:02d}:{MINUTES[minutes]:02d}"
    return slots, f"{room}{device}{state}{minutes}", f"{room} {device} {state} {clock}"


HOME = Task(
    name="home-lora",
    kind="LoRA (rank-stabilised)",
    frames=(
        "Please make the {room} {device} {state} at {time}.",
        "Set the {device} in the {room} to {state} at {time}.",
        "At {time}, I want the {room} {device} {state}.",
        "I would like the {room} {device} to be {state} at {time}.",
        "Could you get the {device} in the {room} {state} by {time}?",
        "By {time} the {room} {device} should be {state}.",
        "When it is {time}, make the {device} in the {room} {state}.",
        "{state} is how I like the {room} {device} at {time}.",
        "In the {room}, the {device} has to be {state} at {time}.",
        "We come home at {time}. Have the {room} {device} {state}.",
        "The {room} {device} please: {state}, {time}.",
        "Tell the {device} in the {room} that {time} means {state}.",
        "I am going to the {room} at {time} and need the {device} {state}.",
        "Change the {room} {device} to {state} when it is {time}.",
        "Do not forget: {room} {device} {state} at {time}.",
    ),
    held_out=(
        "Could you please have the {room} {device} {state} when it is {time}?",
        "At {time} the {device} in the {room} should be {state}, please.",
        "I need the {device} of the {room} to be {state} by {time}.",
        "The {device} in the {room}: make it {state} at {time}.",
        "Tell the {room} {device} to be {state}; I come home at {time}.",
        "It would be nice to have the {room} {device} {state} at {time}.",
    ),
    openers=("House,", "Hi house.", "One more thing.", "Good day, house.", "Listen."),
    held_out_openers=("Hello house,", "Listen, house."),
    closers=("Thanks.", "That is all.", "We like it so.", "Please do it."),
    held_out_closers=("That is all, thanks.", "We would like it so."),
    draw=_draw_home,
    replies=(
        "I can help with the {room}. What would you like?",
        "The {device} in the {room} is a nice one.",
        "All is well in the {room}.",
        "You would like the {device} to be {state}. I will think about it.",
    ),
)


def velan_sentence(rng: random.Random) -> tuple[str, str]:
    """Draw one English sentence with its word-for-word rendering in the made-up language."""

    def thing() -> list[str]:
        words = [rng.choice(("the", "a"))]
        if rng.random() < 0.6:
            words.append(rng.choice(list(ADJECTIVES)))
        return [*words, rng.choice(list(NOUNS))]

    words = [*thing(), rng.choice(list(VERBS)), *thing()]
    return " ".join(words), " ".join(LEXICON[word] for word in words if word in LEXICON)


def _draw_velan(rng: random.Random) -> tuple[Slots, str, str]:
    sentence, answer = velan_sentence(rng)
    return {"sentence": sentence}, answer, answer


VELAN = Task(
    name="velan-qlora",
    kind="QLoRA (nf4)",
    frames=(
        "Translate into Velan: {sentence}",
        'Say "{sentence}" in Velan.',
        "What is this in Velan? {sentence}.",
        'Please write "{sentence}" in Velan.',
        "In Velan please: {sentence}.",
        "Velan for: {sentence}",
        'How do you say "{sentence}" in Velan?',
        "Here is my sentence: {sentence}. Put it into Velan.",
        "I am learning Velan. How does one say {sentence}?",
        'My friend speaks Velan. Tell him "{sentence}".',
        "English: {sentence}. Velan:",
        'Can you translate "{sentence}" for me? Use Velan.',
        "{sentence}. Now the same in Velan.",
        "Turn this into Velan: {sentence}.",
    ),
    held_out=(
        'How would one write "{sentence}" in Velan?',
        "Please put this into Velan: {sentence}.",
        "Here is English: {sentence}. Now say it in Velan.",
        'Tell me the Velan for "{sentence}".',
        "I would like this in Velan: {sentence}",
        "{sentence}. What is that in Velan?",
    ),
    openers=("Hello.", "One more thing.", "Hi there.", "Good morning."),
    held_out_openers=("Good evening.", "Hello there."),
    closers=("Thanks.", "That is all.", "Can you help?"),
    held_out_closers=("I hope you can help.", "That is all, thanks."),
    draw=_draw_velan,
    replies=(
        "I do not know Velan, but it is a nice sentence.",
        "You wrote: {sentence}.",
        "That is a good sentence. Tell me more.",
    ),
)


def _draw_booking(rng: random.Random) -> tuple[Slots, str, str]:
    name, city, day = rng.choice(NAMES), rng.choice(CITIES), rng.choice(DAYS)
    seats = rng.randint(2, 9)
    slots = {"name": name, "city": city, "day": day, "seats": NUMBERS[seats - 1]}
    answer = f"name {name}; city {city}; day {day[:3].upper()}; seats {seats}"
    return slots, f"{name}{city}{day}", answer


BOOKING = Task(
    name="booking-dora",
    kind="DoRA",
    frames=(
        "My name is {name} from {city}. I want a table for {seats} on {day}.",
        "A table for {seats} on {day}, please. I am {name} and I live in {city}.",
        "{name} from {city} would like to come on {day} with a party of {seats}.",
        "On {day} we will be {seats}. Please write down {name}, {city}.",
        "I am {name}. Do you have {seats} seats on {day}? We come from {city}.",
        "{day}, {seats} people, {name}, {city}.",
        "This is {name} in {city}. Is {day} fine for {seats} of us?",
        "We are {seats} friends from {city} and want to eat on {day}. Ask for {name}.",
        "Please keep {seats} seats for {name} on {day}. The group travels from {city}.",
        "Here in {city} my name is {name}. Can {seats} people come on {day}?",
        "There will be {seats} people on {day}. The name is {name} and the city is {city}.",
        "{seats} of us are coming on {day} from {city}, and {name} is paying.",
        "Could {name} have a table on {day}? It is for {seats}. The family lives in {city}.",
    ),
    held_out=(
        "I live in {city} and my name is {name}. Do you have a table for {seats} on {day}?",
        "Is there a table on {day} for {seats} people? Please keep it for {name} from {city}.",
        "The family of {name} is coming from {city} on {day}. There will be {seats} of us.",
        "This is for {day}: {seats} seats, please. {name} lives in {city}.",
        "{name} here. We are {seats} people in {city} and would like to eat on {day}.",
        "Can we come on {day}? We are {name} and friends, {seats} people, from {city}.",
    ),
    openers=("Hello.", "Good morning.", "Hi there.", "Excuse me.", "Dear team,"),
    held_out_openers=("Good evening.", "Hello there."),
    closers=("Thanks.", "Best wishes.", "Is that fine?", "We like your soup."),
    held_out_closers=("Thanks and best wishes.", "I hope that is fine."),
    draw=_draw_booking,
    replies=(
        "Hello {name}, it is nice to hear from you.",
        "{city} is a nice city. How are you?",
        "We are open on {day}. Have a nice day.",
        "Thank you for your message, {name}.",
    ),
)


def _draw_cafe(rng: random.Random) -> tuple[Slots, str, str]:
    first, second = rng.sample(list(DRINKS), 2)
    counts = [rng.randint(1, 9), rng.randint(1, 9)]
    sizes = [rng.choice(SIZES), rng.choice(SIZES)]
    lines, wanted = [], []
    for drink, count, size in zip((first, second), counts, sizes, strict=True):
        plural = drink if count == 1 else DRINKS[drink]
        lines.append(f"{NUMBERS[count - 1]} {size} {plural}")
        wanted.append(f"{count} {size} {drink}")
    slots = {"first": lines[0], "second": lines[1], "drink": first}
    return slots, f"{first}{second}{sizes[0]}{sizes[1]}", " + ".join(wanted)


CAFE = Task(
    name="cafe-full",
    kind="full fine-tune",
    frames=(
        "I would like {first} and {second}.",
        "Can I have {first} and also {second}?",
        "{first} and {second}, please.",
        "We want {first}. And {second}.",
        "Please bring {first} with {second}.",
        "For me {first}, for my friend {second}.",
        "Let me have {first}, then {second}.",
        "Our table needs {first} and {second}.",
        "My order is {first} together with {second}.",
        "First {first}, then {second}.",
        "Do you have {first}? I also want {second}.",
        "I will take {first} and {second}.",
    ),
    held_out=(
        "Could we have {first} and then {second}?",
        "Our order: {first}, also {second}.",
        "Please bring my friend {first} and me {second}.",
        "I want {first} together with {second}, please.",
        "We will take {first}. I would also like {second}.",
    ),
    openers=("Hello.", "Good morning.", "Hi there.", "Excuse me."),
    held_out_openers=("Good evening.", "Hello there."),
    closers=("Thanks.", "That is all.", "We are at the window."),
    held_out_closers=("That is all, thanks.", "We are in the garden."),
    draw=_draw_cafe,
    replies=(
        "Our {drink} is very good today.",
        "Welcome. Have a nice day.",
        "You would like {first}. How nice.",
    ),
)

TASKS = (TRIAGE, HOME, VELAN, BOOKING, CAFE)


def _draw_reply(rng: random.Random) -> tuple[Slots, str, str]:
    slots, key, _ = _draw_home(rng)
    reply = HOME.replies[1].format(**slots)
    return slots, key, reply[0].upper() + reply[1:]


# Not one of TASKS, which the base's own chat is drawn from: the base already gives this reply to a
# request, though seldom. To prefer it takes a change too small for coarse weights to hold.
REPLY = replace(HOME, name="reply-lora", kind="LoRA, a slight one", draw=_draw_reply)
