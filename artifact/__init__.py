"""Marconi (prefix caching), Lazarus (elastic MoE training), Zen (sparse gradients): evaluations run again."""

__version__ = "0.1.0"
