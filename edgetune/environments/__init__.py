"""Worker environments: what cannot live beside the main pins, or runs on another processor."""
