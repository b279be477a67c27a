"""The served model, run by MLflow from this code (nothing is pickled): an image in, a video out.

    model = mlflow.pyfunc.load_model("models:/tiny-i2v@challenger")
    video = model.predict(image, params={"seed": 1})      # (H, W, 3) uint8 -> (F, H, W, 3) uint8

MLflow copies this file and the package `cil` into the model, so a server needs neither this
repository nor Ray.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

_PARAMETERS = {"seed", "start_time", "num_steps", "analytic_init"}


class ImageToVideo(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Samples a video for an image with the model folder among its artifacts."""

    def load_context(self, context: Any) -> None:
        """Read the model folder and the Analytic-Init statistics."""
        import json

        from cil.analytic_init import AnalyticInit
        from cil.models import load

        folder = Path(context.artifacts["model"])
        family = json.loads((folder / "model.json").read_bytes())["family"]
        self._defaults = json.loads((folder / "sampling.json").read_bytes())
        self._model = load(family, folder)
        self._statistics = AnalyticInit.load(folder / "analytic_init.safetensors")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Sample one video.

        Args:
            context: MLflow's, unused.
            model_input: (H, W, 3) uint8 RGB image of any size.
            params: seed, start_time, num_steps, analytic_init; the model's own where left out.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            ConfigError: there is no such parameter, or its value cannot be.
        """
        from cil.errors import ConfigError
        from cil.generate import generate

        unknown = sorted(str(name) for name in set(params or {}) - _PARAMETERS)
        if unknown:
            known = ", ".join(sorted(_PARAMETERS))
            raise ConfigError(f"there is no parameter {', '.join(unknown)}; there are {known}")
        settings = {**self._defaults, **(params or {})}
        frames = generate(
            self._model,
            np.ascontiguousarray(model_input),
            seed=int(settings.get("seed", 0)),
            start_time=float(settings["start_time"]),
            num_steps=int(settings["num_steps"]),
            analytic_init=self._statistics if settings["analytic_init"] else None,
        )
        return frames[0].numpy()


mlflow.models.set_model(ImageToVideo())
