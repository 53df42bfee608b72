"""Where a base, an adapter or data comes from. One file a source, named after it."""
