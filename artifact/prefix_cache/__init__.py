"""Marconi (MLSys 2025): prefix caching for hybrid attention and recurrent language models."""
