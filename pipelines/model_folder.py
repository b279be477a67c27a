"""From a run's configuration to a model, and from trained weights to a model folder."""

import shutil
from dataclasses import asdict
from pathlib import Path

from cil.models import ImageToVideoModel, build
from pipelines.config import RunConfig
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

    Args:
        config: the run.
        dataset: the data set, for the first stage.
        folder: the model folder.
        weights: safetensors file with the network's state dict.
    """
    from safetensors.torch import load_file

    model = build_model(config, dataset)
    temporary = temporary_beside(folder)
    if temporary.exists():
        shutil.rmtree(temporary)
    model.save(temporary, state_dict=load_file(weights))
    replace_folder(temporary, folder)
