"""`edgetune run`: a prompt through the package's own chat template, the answer as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgetune.errors import UsageError
from edgetune.files import read_json
from edgetune.runtime.decoder import generate
from edgetune.runtime.session import OpenPackage, open_package
from edgetune.runtime.text import encode


@dataclass(frozen=True)
class Chat:
    """An opened package that answers single prompts; it keeps no history."""

    opened: OpenPackage

    def prompt_ids(self, text: str, raw: bool = False) -> list[int]:
        """The tokens of a user's prompt, in the chat template unless `raw`.

        Raises UsageError for an empty prompt and for text that is not Unicode.
        """
        if not text.strip() or "\0" in text:
            # onnxruntime-genai's tokenizer takes C strings: a NUL would end the prompt unseen.
            msg = "the prompt holds a NUL character" if text.strip() else "the prompt is empty"
            raise UsageError(msg, "give the text that the model shall answer")
        try:
            text.encode()
        except UnicodeEncodeError as why:
            msg = "the prompt is not UTF-8 text"
            raise UsageError(msg, "check the terminal's encoding") from why
        tokenizer = self.opened.tokenizer
        if not raw and self.has_template:
            messages = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return encode(self.opened, text)

    @property
    def has_template(self) -> bool:
        """Whether the package carries a chat template; without one the prompt goes in as it is."""
        folder = self.opened.variant.folder
        if (folder / "chat_template.jinja").is_file():
            return True
        settings = folder / "tokenizer_config.json"
        return settings.is_file() and bool(read_json(settings).get("chat_template"))

    def stream(self, text: str, max_new_tokens: int, raw: bool = False) -> Iterator[str]:
        """The greedy answer in pieces, each whole characters."""
        pieces = self.opened.tokenizer.create_stream()
        for token in generate(self.opened, self.prompt_ids(text, raw), max_new_tokens):
            if piece := pieces.decode(token):
                yield piece


def open_chat(package: Path, device: str | None = None) -> Chat:
    """Open a package for `edgetune run`. Raises as `open_package` does."""
    return Chat(open_package(package, device=device))
