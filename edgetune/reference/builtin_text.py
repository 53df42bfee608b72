"""Text that stands in for evaluation data where a recipe names none.

Written for this module. The paragraphs are scored as they are; the openings and questions start
what the trained model itself goes on to say.
"""

from __future__ import annotations

PARAGRAPHS = (
    "The harbour was quiet in the early morning. Two boats lay against the wall, and a man in a "
    "green coat was mending a net on the steps. He did not look up when the ferry came in. It "
    "carried eleven passengers, a bicycle and four crates of oranges, and it left again before "
    "the church clock struck seven.",
    "To bake a plain loaf, mix five hundred grams of flour with a teaspoon of salt and a little "
    "yeast. Add three hundred and fifty millilitres of warm water and stir until no dry flour is "
    "left. Let the dough rest for an hour, fold it a few times, and let it rest again. Bake it in "
    "a hot oven until the crust is brown and the loaf sounds hollow when you knock on it.",
    "Water expands when it freezes, which is why ice floats and why pipes burst in winter. Most "
    "liquids do the opposite: they become denser as they cool. The difference comes from the way "
    "water molecules arrange themselves in a crystal, where each one holds four neighbours at a "
    "fixed distance and leaves more empty space than in the liquid.",
    "Dear Ms Hall, thank you for your letter of 12 March. We have checked your account and found "
    "that the amount of 48.50 was charged twice by mistake. The second payment has been returned "
    "to your card and should appear within five working days. Please accept our apologies. If you "
    "have any further questions, reply to this message or call us between 9:00 and 17:00.",
    "A list can be sorted by looking at each pair of neighbours and swapping the two when they "
    "stand in the wrong order. After one pass the largest element is at the end. Repeating this "
    "for the rest sorts the whole list, but the number of comparisons grows with the square of "
    "its length, so that better methods are used for anything large.",
    "The meeting was opened by the chair at half past two. The minutes of the previous meeting "
    "were approved without changes. The treasurer reported that membership fees had risen by four "
    "percent and that the roof of the hall would have to be repaired before the autumn. It was "
    "agreed to ask three firms for an offer and to decide in June.",
)

OPENINGS = (
    "The",
    "In the beginning",
    "Once upon a time",
    "There are three reasons why",
    "The most important thing to know about",
    "She looked at the clock and",
    "According to the report,",
    "When the train finally arrived,",
    "The first step is to",
    "On Monday morning",
    "It is often said that",
    "My favourite",
)

QUESTIONS = (
    "Hello, can you help me?",
    "What is the capital of France?",
    "Please write a short story about a dog.",
    "Explain how a bicycle works.",
    "My order has not arrived yet.",
    "Give me three tips for better sleep.",
    "Translate 'good morning' into German.",
    "What is 17 plus 25?",
    "Summarize the plot of a book that you like.",
    "Turn off the light in the kitchen.",
    "Write a polite message that cancels a meeting.",
    "Why is the sky blue?",
)
