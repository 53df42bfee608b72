"""The trained model in torch: what it answers, and whether the merged checkpoint is the same."""

import os

# torch's OpenMP threads spin for about a millisecond after each operation. Where another program
# wants the processor, that made a model of 130 M parameters 3 to 10 times slower on two cores;
# a tenth of it still bridges the gaps between operations. It must be set before torch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
