"""From a run's configuration to a model, and from trained weights to a model folder."""

import shutil
from dataclasses import asdict
from pathlib import Path

from cil.errors import DataError
from cil.models import ImageToVideoModel, build
from pipelines.config import RunConfig
from pipelines.engine import choose_trainable
from pipelines.selection.bucket import Bucket
from pipelines.shard_reader import ShardReader
from pipelines.storage import replace_folder, temporary_beside

__all__ = ["build_model", "save_model"]


def build_model(config: RunConfig, dataset: ShardReader) -> ImageToVideoModel:
    """Build the network with fresh weights around the data set's first stage.

    Args:
        config: the run; the seed decides the weights.
        dataset: the data set; its bucket decides the shape of a clip.
    """
    settings = asdict(config.model)
    family = settings.pop("family")
    size = Bucket.parse(dataset.bucket)
    first_stage = dataset.first_stage()
    return build(
        family,
        seed=config.seed,
        first_stage=first_stage,
        num_frames=size.num_frames,
        height=size.height,
        width=size.width,
        fps=config.data.fps,
        latent_channels=first_stage.latent_channels,
        downsampling=first_stage.downsampling,
        **settings,
    )


def save_model(config: RunConfig, dataset: ShardReader, folder: Path, *, weights: Path) -> None:
    """Write a model folder with the given weights, whole or not at all.

    What was not trained keeps the weights that training began with, bit for bit.

    Args:
        config: the run.
        dataset: the data set, for the first stage.
        folder: the model folder.
        weights: safetensors file with the trained parameters by name.

    Raises:
        DataError: the file holds other parameters than the run trains.
    """
    from safetensors.torch import load_file

    model = build_model(config, dataset)
    trained = load_file(weights)
    wrong = sorted(choose_trainable(config.train, model) ^ set(trained))
    if wrong:
        raise DataError(
            f"{weights} must hold the parameters that are trained; {len(wrong)} are missing or "
            f"too many, the first is {wrong[0]}; delete the train folder and train again"
        )
    temporary = temporary_beside(folder)
    if temporary.exists():
        shutil.rmtree(temporary)
    model.save(temporary, state_dict={**model.network.state_dict(), **trained})
    replace_folder(temporary, folder)
