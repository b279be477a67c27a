"""Fused Triton kernels for TimeNoise on torch; nothing here imports ``cil`` or ``pipelines``.

Importing this package is cheap and does not import Triton. It must never get a version attribute:
diffusers and transformers probe for another distribution of the same import name by that attribute.
"""
