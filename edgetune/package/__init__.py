"""Step 5: what ships."""
