"""What each execution provider needs, one file a provider; standard library only."""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from typing import Protocol, cast

from edgetune.errors import UsageError

# Of `Provider.PRECISIONS`: an 8-bit key-value cache.
INT8_CACHE = "int8 cache"


class Provider(Protocol):
    """What a file in this folder says."""

    @property
    def EXECUTION_PROVIDER(self) -> str:
        """The name in ONNX Runtime's spelling."""

    @property
    def SHORT_NAME(self) -> str:
        """The name in a variant's folder name."""

    @property
    def DEVICE_KIND(self) -> str:
        """`cpu`, `gpu` or `npu`, as an ORT model package says it."""

    @property
    def BUILDER_NAME(self) -> str:
        """The name in onnxruntime-genai's builder."""

    @property
    def PRECISIONS(self) -> tuple[str, ...]:
        """The builder's precisions that have kernels, `nf4` where MatMulBnb4 has one, and
        `int8 cache` where attention reads one; what needs another one is refused."""


_FILES = sorted(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
PROVIDERS: dict[str, Provider] = {
    row.EXECUTION_PROVIDER: row for row in (cast(Provider, import_module(f)) for f in _FILES)
}


def find_provider(name: str) -> Provider:
    """The provider of a name in ONNX Runtime's spelling. Raises UsageError for an unknown one."""
    if name in PROVIDERS:
        return PROVIDERS[name]
    folded = {known.casefold(): known for known in PROVIDERS}
    folded |= {row.SHORT_NAME: known for known, row in PROVIDERS.items()}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    meant = f"did you mean {folded[close[0]]!r}?" if close else f"known: {', '.join(PROVIDERS)}"
    msg = f"no execution provider is called {name!r}"
    raise UsageError(msg, meant)


def check_kernels(provider: str, what: str, precision: str) -> None:
    """Raise UsageError when the provider has no kernels of the precision that `what` needs."""
    row = find_provider(provider)
    if precision not in row.PRECISIONS:
        msg = f"{provider} has no kernels for {what} ({precision})"
        hint = f"it runs {', '.join(row.PRECISIONS)}: choose a scheme of these, such as w8a16-rtn"
        raise UsageError(msg, hint)
