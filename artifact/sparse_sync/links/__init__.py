"""Schemes over real links: transport, the DDP hook, the testbed; and bytes counted in one process."""
