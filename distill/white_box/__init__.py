"""Losses that read a local teacher's own distributions and hidden states, and not its words alone."""
