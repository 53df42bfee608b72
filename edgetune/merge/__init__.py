"""Step 1: base + adapters -> merged checkpoint."""
