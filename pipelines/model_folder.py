"""From a run's configuration to a model, and from trained weights to a model folder.

A model folder of a training by LoRA holds the whole network with the adapters merged into it, which
opens like any other, and ``adapter/`` with the adapters alone, as peft writes them.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cil.errors import DataError
from cil.models import FirstStage, ImageToVideoModel, build, load
from cil.models.null_condition import NullCondition
from pipelines.config import RunConfig
from pipelines.engine import choose_trainable
from pipelines.lora import add_lora, lora_parameters, merge_lora, save_adapter
from pipelines.model_settings import FAMILIES_WITH_TEXT, family_settings
from pipelines.selection.bucket import Bucket
from pipelines.shard_reader import ShardReader
from pipelines.storage import replace_folder, temporary_beside

__all__ = ["ADAPTER_FOLDER", "build_model", "new_model", "save_model", "write_model"]

ADAPTER_FOLDER = "adapter"


def build_model(config: RunConfig, dataset: ShardReader) -> ImageToVideoModel:
    """Build the network as training begins with it, around the data set's first stage.

    Args:
        config: the run; the seed decides the weights. With ``train.trainable`` lora the network has
            adapters, which change nothing before they are trained.
        dataset: the data set; its bucket decides the shape of a clip.

    Raises:
        ConfigError: ``train.lora_targets`` does not fit the network.
    """
    first_stage = dataset.first_stage()
    return new_model(
        config,
        Bucket.parse(dataset.bucket),
        first_stage=first_stage,
        latent_channels=first_stage.latent_channels,
        downsampling=first_stage.downsampling,
        null_condition=dataset.null_condition(),
    )


def new_model(
    config: RunConfig,
    size: Bucket,
    *,
    latent_channels: int,
    downsampling: int,
    first_stage: FirstStage | None = None,
    null_condition: NullCondition | None = None,
) -> ImageToVideoModel:
    """Build the network for clips of a size, with adapters where the run trains them.

    Args:
        config: the run.
        size: of the clips.
        latent_channels: of the first stage.
        downsampling: pixels per latent, each way.
        first_stage: the codec; a plan needs none.
        null_condition: of the data set; None takes that of the model folder, if there is one.

    Raises:
        ConfigError: ``train.lora_targets`` does not fit the network.
    """
    settings: dict[str, Any] = {
        "num_frames": size.num_frames,
        "height": size.height,
        "width": size.width,
        "fps": config.data.fps,
        "latent_channels": latent_channels,
        "downsampling": downsampling,
        **family_settings(config.model),
    }
    family, encoders = config.model.family, config.condition.image_encoder
    if family in FAMILIES_WITH_TEXT:
        text = config.condition.text_encoder
        settings["text_encoder"] = None if text is None else Path(text)
        settings["null_condition"] = null_condition
    if config.model.pretrained is None:
        model = build(family, seed=config.seed, first_stage=first_stage, **settings)
    else:
        model = load(
            family,
            config.model.pretrained,
            first_stage=first_stage,
            encoders=None if encoders is None else Path(encoders),
            weights=first_stage is not None,
            **settings,
        )
    train = config.train
    if train.trainable == "lora":
        add_lora(
            model.network,
            targets=model.lora_targets() if train.lora_targets is None else train.lora_targets,
            rank=train.lora_rank,
            alpha=train.lora_rank if train.lora_alpha is None else train.lora_alpha,
            seed=config.seed,
        )
    return model


def save_model(config: RunConfig, dataset: ShardReader, folder: Path, *, weights: Path) -> None:
    """Write a model folder with the given weights, whole or not at all.

    What was not trained keeps the weights that training began with, bit for bit.

    Args:
        config: the run.
        dataset: the data set, for the first stage.
        folder: the model folder; an older one is replaced.
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
    write_model(model, folder, trained)


def write_model(model: ImageToVideoModel, folder: Path, trained: Mapping[str, Tensor]) -> None:
    """Write a model with its trained parameters replaced, whole or not at all.

    Args:
        model: as `build_model` made it; it gets the weights, and its adapters are merged in.
        folder: the model folder; an older one is replaced.
        trained: parameters of ``model.network`` by name, float32; the others stay.
    """
    temporary = temporary_beside(folder)
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        model.network.load_state_dict(dict(trained), strict=False)
        if lora_parameters(model.network):
            save_adapter(model.network, temporary / ADAPTER_FOLDER)
            merge_lora(model.network)
        model.save(temporary)
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
