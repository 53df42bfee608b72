"""edgetune: a fine-tuned model goes in, a package that runs on the device comes out, with proof."""

__version__ = "0.1.0"
