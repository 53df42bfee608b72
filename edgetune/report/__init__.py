"""The report: its form, the one function that judges it, and how people read it."""
