"""Training through failures, on real processes."""
