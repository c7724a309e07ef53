"""Sparse tensors, their wire formats, and their partition among servers."""
