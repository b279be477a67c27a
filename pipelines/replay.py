"""Look again at a step whose loss or gradient was not finite: `cil train --replay FILE`.

In: the record `train/nonfinite-step-N.json` and the weights that lie beside it, which training left
when it stopped. Out: for each clip of that step its loss, sigma_cond and norm of the gradient, on
this process alone, without Ray and DeepSpeed; nothing is written. All noise is a function of the
seed, the place in the batch and the step, so each clip is the one that the workers had.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from pipelines.activations import DTYPES
from pipelines.batches import BatchReader
from pipelines.config import RunConfig
from pipelines.dataset import open_training_data
from pipelines.engine import choose_trainable
from pipelines.fused_input import choose_impl
from pipelines.model_folder import build_model
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.train_step import TrainStep

__all__ = ["replay_step", "save_whole_weights", "show_replay"]


def save_whole_weights(engine: Any, path: Path, *, write: bool) -> None:
    """Write what is trained, in fp32 and by name, as safetensors; a collective call.

    Args:
        engine: DeepSpeed engine; nothing of it changes.
        path: the file.
        write: False on the ranks that only take part.
    """
    from deepspeed.utils import safe_get_full_fp32_param
    from safetensors.torch import save_file

    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    if engine.zero_optimization_stage() == 0:
        # the parameters in fp32, else copies of them in fp32
        whole = [master for group in engine.optimizer.param_groups for master in group["params"]]
    else:
        whole = [safe_get_full_fp32_param(parameter) for _, parameter in trained]
    if not write:
        return
    state = {}
    for (name, parameter), value in zip(trained, whole, strict=True):
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 leaves itself empty
        state[name] = value.detach().to("cpu", torch.float32).reshape(shape).clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


class _OneProcess:
    """What `TrainStep.loss` uses of an engine."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self.device = network, device

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._network(*arguments, **named)


def replay_step(config: RunConfig, record_path: str) -> RunReport:
    """Compute every clip of a step again.

    Args:
        config: the run's; the record has the command with the right one.
        record_path: ``nonfinite-step-N.json``.

    Returns:
        ``outputs["clips"]`` with one entry per clip, and ``outputs["broken"]``, the keys of those
        that are not finite.

    Raises:
        ConfigError: no such record, or it is of another run.
        DataError: the record is damaged.
    """
    from pipelines.train import train_identity

    watch = Stopwatch()
    path = Path(record_path)
    if not path.is_file():
        raise ConfigError(f"--replay: {path} does not exist; it is in the run's train folder")
    record = _read_record(path)
    data = open_training_data(config)
    identity = train_identity(config, data.manifest.fingerprint)
    if record.get("identity") != identity:
        raise ConfigError(
            f"{path} is of another run: its identity is {record.get('identity')}, that of these "
            f"settings and data set is {identity}; use the command that the record holds"
        )
    step, what = _step_of(path, record)
    torch.set_num_threads(config.train.cpus_per_worker)  # as the workers do
    batches = BatchReader(
        data.readers, global_batch_size=config.train.global_batch_size, seed=config.seed
    )
    model = build_model(config, data.largest)
    choose_trainable(config.train, model)
    weights, source = _weights(path)
    model.network.load_state_dict({**model.network.state_dict(), **weights})
    gpu = config.train.use_gpu and torch.cuda.is_available()
    # a CPU has no fp16 for all operators
    precision = "fp32" if config.train.precision == "fp16" and not gpu else config.train.precision
    device = torch.device("cuda" if gpu else "cpu")
    model.network.to(device).to(DTYPES[precision]).train()
    impl = choose_impl(config.time_noise.impl, use_gpu=gpu)
    engine = _OneProcess(model.network, device)
    take = TrainStep(config, model, batches, engine, world_size=1, impl=impl)
    batch = batches.batch(step)
    clips: list[dict[str, Any]] = []
    for place in range(len(batch)):
        result = take.loss(batch.part(place, place + 1), step)
        result.loss.backward()  # type: ignore[no-untyped-call]
        clips.append(
            {
                "place": place,
                "key": batch.records[place].key,
                "loss": result.loss.item(),
                "sigma": result.level.item(),
                "sigma_cond": result.sigma_cond.item(),
                "grad_norm": _gradient_norm(model.network),
            }
        )
    broken = [clip["key"] for clip in clips if not _is_finite(clip)]
    return RunReport(
        stage="replay",
        reused=False,
        inputs={
            "record": str(path),
            "step": step,
            "what": what,
            "weights": source,
            "device": device.type,
            "precision": precision,
        },
        outputs={"clips": [_plain(clip) for clip in clips], "broken": broken},
        metrics={"clips": float(len(clips)), "broken": float(len(broken))},
        seconds=watch.seconds(),
    )


def _read_record(path: Path) -> dict[str, Any]:
    takes = "--replay takes the file that a stopped training names"
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); {takes}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no fields, got {type(record).__name__}; {takes}")
    return record


def _step_of(path: Path, record: dict[str, Any]) -> tuple[int, str]:
    """Return which step a record is of, and what was not finite in it."""
    step, what = record.get("step"), record.get("what")
    if type(step) is not int or step < 0 or not isinstance(what, str):
        raise DataError(
            f"{path} is damaged: it must have a step, a whole number, and what was not finite in "
            f"it, got {step!r} and {what!r}; restore it, or train on until the step comes again"
        )
    return step, what


def _weights(record: Path) -> tuple[dict[str, Tensor], str]:
    """Return what was trained when the run stopped; nothing, if that was not written."""
    from safetensors.torch import load_file

    path = record.with_suffix(".safetensors")
    if path.is_file():
        return load_file(path), str(path)
    return {}, "those that training began with"


def _gradient_norm(network: nn.Module) -> float:
    gradients = [p.grad.float() for p in network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    network.zero_grad()
    return norm


def _is_finite(clip: dict[str, Any]) -> bool:
    return all(math.isfinite(float(clip[name])) for name in ("loss", "grad_norm"))


def _plain(clip: dict[str, Any]) -> dict[str, Any]:
    """Write numbers that JSON does not have as text."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in clip.items()
    }


def show_replay(report: RunReport) -> None:
    """Print the clips of a step on stderr.

    Args:
        report: what `replay_step` returned.
    """
    inputs, outputs = report.inputs, report.outputs
    console.print(
        f"step {inputs['step']}, its {inputs['what']} was not finite; again on "
        f"{inputs['device']} in {inputs['precision']}, with the weights {inputs['weights']}",
        markup=False,
    )
    for clip in outputs["clips"]:
        mark = "" if _is_finite(clip) else "  <- not finite"
        numbers = ", ".join(
            f"{name} {float(clip[name]):.5g}"
            for name in ("loss", "sigma", "sigma_cond", "grad_norm")
        )
        console.print(f"  place {clip['place']}, {clip['key']}: {numbers}{mark}", markup=False)
    if not outputs["broken"]:
        console.print(
            "  every clip is finite by itself here: the sum over workers, the precision or the "
            "device made it otherwise",
            markup=False,
        )
