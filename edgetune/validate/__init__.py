"""Step 6: measures what ships against the reference it carries; judges nothing."""
