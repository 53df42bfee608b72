"""Reads and writes checkpoints tensor by tensor; 4-bit bases as they were trained on."""
