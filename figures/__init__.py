"""The papers' evaluations, run again: experiments, plots, claims and the pictures they give. Part of the checkout."""
