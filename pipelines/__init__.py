"""The distributed stages: Ray Data, Ray Train, DeepSpeed and MLflow around the method in `cil`."""
