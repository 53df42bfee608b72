"""Item by item, what the trained model and the package did: for files of other tools."""

from __future__ import annotations

from typing import Any

from edgetune.files import read_json
from edgetune.runtime.session import OpenPackage
from edgetune.validate.evaluate import Evaluation, decode
from edgetune.validate.self_test import SelfTest


def make_answers(
    opened: OpenPackage, self_test: SelfTest, evaluation: Evaluation, exact: list[bool | None]
) -> dict[str, Any]:
    """{task, source, seed, max_new_tokens, context_length, chat_template, special_tokens,
    items_left_out, items}.

    items [{id, prompt, expected, target, target_tokens, reference, package}]; the last two
    {answer, exact_match, answer_logprob}, a mean in nats over the target's tokens. An item without
    an expected answer has no prompt but its first tokens, and no answers.
    """
    facts = self_test.facts
    cases = self_test.tokenizer_cases.get("special_tokens") or {}
    items = []
    for number, item in enumerate(self_test.items):
        logprobs = evaluation.positions.target_logprob[self_test.positions(number)]
        items.append(
            {
                "id": item.id,
                "prompt": item.prompt_text or decode(opened, list(item.prompt_ids)),
                "expected": item.answer if item.reference_answer is not None else None,
                "target": decode(opened, list(item.target_ids)),
                "target_tokens": len(item.target_ids),
                "reference": {
                    "answer": item.reference_answer,
                    "exact_match": item.reference_exact,
                    "answer_logprob": item.reference_answer_logprob,
                },
                "package": {
                    "answer": evaluation.answers[number],
                    "exact_match": exact[number],
                    "answer_logprob": float(logprobs.mean()),
                },
            }
        )
    return {
        "task": str(facts.get("task")),
        "source": str(facts.get("source")),
        # Items of the data beyond those that were measured.
        "items_left_out": int(facts.get("items_in_data") or len(items)) - len(items),
        "seed": int(facts.get("seed") or 0),
        "max_new_tokens": facts.get("max_new_tokens"),
        "context_length": opened.context_length,
        "chat_template": _chat_template(opened),
        "special_tokens": dict(cases.get("roles") or {}),
        "items": items,
    }


def _chat_template(opened: OpenPackage) -> str | None:
    """The template as the package carries it, in a file of its own or in tokenizer_config.json."""
    folder = opened.variant.folder
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    found = read_json(settings).get("chat_template") if settings.is_file() else None
    return found if isinstance(found, str) else None
