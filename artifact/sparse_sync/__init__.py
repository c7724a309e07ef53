"""Zen (OSDI 2025): near-optimal synchronisation of sparse gradients."""
