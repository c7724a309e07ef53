"""Training through failures, simulated."""
