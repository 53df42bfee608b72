"""What each provider's file says, and how a wrong name is answered."""

from __future__ import annotations

import pytest

from edgetune.errors import UsageError
from edgetune.optimize.schemes import SCHEMES
from edgetune.providers import PROVIDERS, check_kernels, find_provider


def test_rows_are_whole() -> None:
    for name, row in PROVIDERS.items():
        assert name == row.EXECUTION_PROVIDER
        assert name.endswith("ExecutionProvider")
        assert row.DEVICE_KIND in ("cpu", "gpu", "npu")
        assert any(scheme.precision in row.PRECISIONS for scheme in SCHEMES.values())


def test_the_cpu_provider_is_found() -> None:
    row = find_provider("CPUExecutionProvider")
    assert (row.SHORT_NAME, row.BUILDER_NAME, row.DEVICE_KIND) == ("cpu", "cpu", "cpu")
    assert row.PRECISIONS == ("fp32", "int8", "int4", "nf4", "int8 cache")


@pytest.mark.parametrize("name", ["cpu", "cpuexecutionprovider", "CPUExecutionProvidr"])
def test_a_near_miss_is_told_the_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"no execution provider is called '{name}'") as raised:
        find_provider(name)
    assert raised.value.hint == "did you mean 'CPUExecutionProvider'?"
    assert raised.value.exit_code == 2


def test_an_unknown_one_is_told_the_known() -> None:
    with pytest.raises(UsageError) as raised:
        find_provider("warp drive")
    assert raised.value.hint == "known: CPUExecutionProvider"


def test_a_scheme_without_kernels_is_refused() -> None:
    check_kernels("CPUExecutionProvider", "the scheme w8a16-rtn", "int8")
    with pytest.raises(UsageError, match="CPUExecutionProvider has no kernels for the scheme half"):
        check_kernels("CPUExecutionProvider", "the scheme half", "fp16")
