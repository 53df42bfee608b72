"""A package checked on a device that is reached by ssh."""
