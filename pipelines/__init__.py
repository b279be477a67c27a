"""The distributed stages: Ray Data, Ray Train with DeepSpeed, and MLflow around the method in ``cil``."""
