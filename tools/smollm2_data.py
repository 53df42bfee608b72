"""The tasks that the SmolLM2 adapters learn: a message in English goes in, JSON comes out.

The messages are the demo's (`demo_data`: two disjoint sets of sentence frames, a fifth of the slot
combinations for the examination only); the answers are written as JSON, which the base alone
never gives for them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from demo_data import TASKS as DEMO_TASKS
from demo_data import Pair
from demo_data import Task as DemoTask

_TRIAGE, _HOME, _, _BOOKING, _ = DEMO_TASKS


@dataclass(frozen=True)
class Task:
    """One task: the demo's messages with another form of answer."""

    # The adapter's folder; the data files take its first word.
    name: str
    demo: DemoTask
    # The fields of the demo's answer, in order.
    fields: Callable[[str], dict[str, str | int]]

    def sample(self, rng: random.Random, held_out: bool = False) -> Pair:
        """Draw one message with its answer; held out: none that is learned from."""
        message, answer = self.demo.sample(rng, held_out)
        return message, json.dumps(self.fields(answer))

    def noisy_sample(self, rng: random.Random) -> Pair:
        """Draw one message to learn from, at times with idle words that mean nothing in it."""
        message, answer = self.demo.noisy_sample(rng)
        return message, json.dumps(self.fields(answer))


def _home(answer: str) -> dict[str, str | int]:
    room, device, state, time = answer.split(" ")
    hour, minute = divmod(int(time.replace(":", "")), 100)
    # On the clock of the message: a model of this size learns no sums in minutes.
    time = f"{hour % 12 or 12}:{minute:02} {'pm' if hour >= 12 else 'am'}"
    return {"room": room, "device": device, "state": state, "time": time}


def _booking(answer: str) -> dict[str, str | int]:
    name, city, day, seats = (part.split(" ")[1] for part in answer.split("; "))
    return {"name": name, "city": city, "day": day.title(), "seats": int(seats)}


def _ticket(answer: str) -> dict[str, str | int]:
    issue, item, order, priority = answer.split(" / ")
    return {"issue": issue, "item": item, "order": int(order), "priority": priority}


HOME = Task("home-lora", _HOME, _home)
BOOKING = Task("booking-dora", _BOOKING, _booking)
TICKET = Task("ticket-qlora", _TRIAGE, _ticket)
TASKS = (HOME, BOOKING, TICKET)
