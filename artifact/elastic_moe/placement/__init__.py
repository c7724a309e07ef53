"""How many replicas of each expert, on which nodes, and what survives a failure."""
