"""A process that gives up its rights before it reads what it does not trust, and proves that it
did. Linux and the standard library only."""
