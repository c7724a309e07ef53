"""The cached prefixes: the tree, admission, eviction, tuning, and the tiers below it."""
