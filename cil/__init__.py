"""Conditional image leakage in image-to-video diffusion: its measures and its cures, in pure torch."""
