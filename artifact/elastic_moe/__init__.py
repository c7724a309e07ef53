"""Lazarus (arXiv 2407.04656): resilient, elastic training of Mixture-of-Experts models."""
