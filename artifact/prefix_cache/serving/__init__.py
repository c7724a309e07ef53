"""Real hybrid models that prefill from cached states."""
