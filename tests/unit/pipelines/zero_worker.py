"""One rank of a training without Ray: runs cases one after another in one process group.

    python zero_worker.py SPEC.json RANK

The specification holds the configuration and the cases; rank 0 writes what came out.
"""

import json
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    rank, world_size = int(sys.argv[2]), spec["world_size"]
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    import torch
    from deepspeed.accelerator import get_accelerator

    torch.set_num_threads(1)
    # through a file: a free port may be another's by the time it is used
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{spec['rendezvous']}", rank=rank, world_size=spec["world_size"]
    )
    # DeepSpeed refuses fp16 on most CPUs for being slow; for looking at its loss scale it will do
    get_accelerator().is_fp16_supported = lambda: True
    for case in spec["cases"]:
        folder = Path(spec["output"]) / case["name"]
        result = run_case(spec["config"], case, folder, rank, world_size)
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(result))


def run_case(config, case, folder, rank, world_size):
    import dataclasses

    import torch
    from deepspeed.utils import safe_get_full_fp32_param
    from safetensors.torch import save_file

    from pipelines.checkpoint import TrainState, load_checkpoint
    from pipelines.config import RunConfig, validate_config
    from pipelines.dataset import open_training_data
    from pipelines.engine import start_engine
    from pipelines.model_folder import build_model
    from pipelines.prefetch import read_ahead
    from pipelines.train_step import NonFiniteLossError, TrainStep
    from pipelines.weight_average import ShardedEma
    from pipelines.zero_config import learning_rate

    folder.mkdir(parents=True, exist_ok=True)
    config: RunConfig = validate_config(config, source="the test")
    # past the checks on purpose: fp16 without a GPU is refused there
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **case["train"]))
    train, data = config.train, open_training_data(config, num_sharers=world_size)
    resources = ExitStack()

    def scale_gradient(module, inputs, output):
        """Leave the loss what it is, but not its gradient."""
        output.register_hook(lambda gradient: gradient * case["explode"])

    def start(first_step):
        resources.close()
        model = build_model(config, data.largest)
        if "explode" in case:
            model.network.conv_out.register_forward_hook(scale_gradient)
        engine = start_engine(train, model)
        batches = resources.enter_context(
            read_ahead(config, data, first_step=first_step, rank=rank, world_size=world_size)
        )
        take = TrainStep(config, model, batches, engine, world_size=world_size)
        return engine, ShardedEma(engine, train.ema_decay), take

    engine, ema, take = start(case.get("from_step", 0))
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    expected = TrainState(world_size=world_size, zero_stage=train.zero_stage)
    state = dataclasses.replace(expected)
    result = {"rows": [], "master_elements": 0, "optimiser_elements": 0}
    masters = []

    def remember():
        """Note the weights in full precision, gathered parameter by parameter."""
        if train.zero_stage:
            whole = [safe_get_full_fp32_param(parameter) for _, parameter in trained]
        else:
            whole = engine.optimizer.param_groups[0]["params"]
        names = [name for name, _ in trained]
        masters.append({n: value.detach().clone() for n, value in zip(names, whole, strict=True)})

    if "from" in case:
        state = load_checkpoint(
            Path(case["from"]),
            engine=engine,
            ema=ema,
            expected=expected,
            rank=rank,
            universal=Path(case["universal"]) if "universal" in case else None,
        )
        save(folder / "again", engine=engine, ema=ema, state=state, rank=rank)
    if case.get("masters"):
        remember()
    while state.num_steps < case.get("stop_after", train.num_steps):
        try:
            row = take(state.num_steps, learning_rate=learning_rate(train, state.num_steps))
        except NonFiniteLossError as error:
            result["error"], result["record"] = str(error), error.record
            break
        ema.update()
        result["rows"].append(row)
        state.num_steps += 1
        state.num_clips_seen += train.global_batch_size
        if case.get("masters"):
            remember()
        if state.num_steps == case.get("resume_after"):
            save(folder, engine=engine, ema=ema, state=state, rank=rank)
            # whole: what pads the last rank's part in ZeRO 3 is anything at all
            held = ema.gather(engine.module)
            torch.distributed.barrier()
            engine.destroy()
            engine, ema, take = start(state.num_steps)
            trained = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
            state = load_checkpoint(
                folder,
                engine=engine,
                ema=ema,
                expected=expected,
                rank=rank,
            )
            again = ema.gather(engine.module)
            same = held.keys() == again.keys() and all(held[n].equal(again[n]) for n in held)
            ranks = torch.tensor(int(same))
            torch.distributed.all_reduce(ranks)
            result["ranks_with_the_same_average"] = ranks.item()
    if case.get("masters"):
        remember()
    optimiser = getattr(engine.optimizer, "optimizer", engine.optimizer)
    sizes = torch.tensor(
        [
            sum(shard.numel() for shard in ema.shards),
            sum(
                value.numel()
                for state_of_one in optimiser.state.values()
                for value in state_of_one.values()
                if torch.is_tensor(value) and value.numel() > 1
            ),
        ]
    )
    torch.distributed.all_reduce(sizes)
    result["master_elements"], result["optimiser_elements"] = sizes.tolist()
    save(folder / "last", engine=engine, ema=ema, state=state, rank=rank)
    if rank == 0:
        for number, step in enumerate(masters):
            save_file(
                {name: value.reshape(-1).contiguous() for name, value in step.items()},
                folder / f"masters{number}.safetensors",
            )
    torch.distributed.barrier()
    resources.close()
    engine.destroy()
    return result


def save(folder, *, engine, ema, state, rank):
    """Write a checkpoint as training does: each rank in a folder of its own, then merged."""
    import torch

    from pipelines.checkpoint import save_checkpoint

    own = folder / f".rank{rank}"
    own.mkdir(parents=True)
    save_checkpoint(own, engine=engine, ema=ema, state=state, rank=rank)
    torch.distributed.barrier()
    for path in sorted(own.rglob("*")):
        if path.is_file():
            place = folder / path.relative_to(own)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    shutil.rmtree(own)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
