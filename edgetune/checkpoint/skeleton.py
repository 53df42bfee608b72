"""The model of a checkpoint without its weights: on torch's meta device, it costs no memory."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.errors import InputRefusedError


def meta_model(base: CheckpointFolder) -> Any:
    """The causal language model that config.json describes, all parameters on the meta device.

    Raises InputRefusedError for a config that transformers refuses.
    """
    with quiet():
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        config = model_config(base)
        try:
            with init_empty_weights(include_buffers=False):
                return AutoModelForCausalLM.from_config(config).eval()
        except Exception as why:  # a value of the wrong kind fails anywhere in the model's code
            raise _refused(base, why) from why


def model_config(base: CheckpointFolder) -> Any:
    """The checkpoint's transformers config, as a plain model's; remote code is never run."""
    from transformers import AutoConfig

    plain = {k: v for k, v in base.config.items() if k not in ("quantization_config", "auto_map")}
    plain["tie_word_embeddings"] = base.tied
    model_type = plain.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **plain)
    except Exception as why:  # transformers' strict dataclasses raise errors of their own
        raise _refused(base, why) from why


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the log, and the network out of reach, for a block."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refused(base: CheckpointFolder, why: BaseException) -> InputRefusedError:
    text = " ".join(str(why).split())[:300]
    msg = f"{base.path / 'config.json'}: transformers refuses it ({text})"
    return InputRefusedError(msg, "take the config.json that belongs to these weights")
