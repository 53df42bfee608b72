"""GPTQ: each layer's weights rounded so that its outputs on calibration text change least.

`solve` rounds one matrix, `layers` runs a checkpoint's decoder layers one after the other, `codes`
holds what comes out until the builder asks for it, `quantize` is the whole.
"""
