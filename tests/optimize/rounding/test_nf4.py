"""NF4 is kept, value for value, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetune.checkpoint.nf4 import NF4_CODES, NF4_STEPS, nf4_values
from edgetune.errors import StepFailedError
from edgetune.optimize.rounding.block import Block
from edgetune.optimize.rounding.nf4 import round_block
from edgetune.optimize.widths import NF4, Width

WIDTH = Width(4, 64, NF4)


def on_the_grid(outputs: int = 5, groups: int = 3) -> torch.Tensor:
    """Weights as bitsandbytes' dequantization leaves them: a code of −1 or 1 in each block."""
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 16, (outputs, groups, 64))
    codes[:, :, 7] = np.where(draw.random((outputs, groups)) < 0.5, 0, 15)
    scales = draw.random((outputs, groups, 1)).astype(np.float32) + np.float32(0.01)
    scales[1, 1] = 0
    return torch.from_numpy((NF4_CODES[codes] * scales).reshape(outputs, -1))


def test_codes_and_scales_are_found_again() -> None:
    values = on_the_grid()
    found = round_block(Block("w", 0, values), WIDTH)
    assert found.packed.shape == (5, 3, 32)
    assert found.zero_points is None
    kept = nf4_values(found.packed, found.scales).reshape(values.shape)
    assert np.array_equal(kept, values.numpy())


def test_what_is_not_nf4_is_refused() -> None:
    values = on_the_grid()
    values[2, 70] *= 1.0001
    with pytest.raises(
        StepFailedError, match=r"mlp\.up: its weights are not NF4 any more"
    ) as raised:
        round_block(Block("mlp.up", 0, values), WIDTH)
    assert raised.value.hint == "store it otherwise: protect: {mlp.up: w8}"
    with pytest.raises(ValueError, match="rows of 96 values are no whole blocks"):
        round_block(Block("w", 0, torch.zeros(2, 96)), WIDTH)


def test_the_steps_are_what_is_rounded_to_a_code() -> None:
    bounds = (NF4_CODES[1:] + NF4_CODES[:-1]) / 2
    assert NF4_STEPS[1:-1] == pytest.approx(bounds[1:] - bounds[:-1])
    assert NF4_STEPS[0] == pytest.approx(NF4_CODES[1] - NF4_CODES[0])
    assert (np.diff(NF4_CODES) > 0).all()


@pytest.mark.line
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_own_weights_are_kept(double: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    values = torch.randn(32, 192, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(
        values, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    state.dtype = torch.float32
    trained = dequantize_4bit(packed, state)
    found = round_block(Block("w", 0, trained), WIDTH)
    assert np.array_equal(found.packed.reshape(-1), packed.numpy().reshape(-1))
