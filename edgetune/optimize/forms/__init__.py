"""How a graph is exported, one file a form."""
