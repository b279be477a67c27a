"""One rank of engines without Ray: counts the bytes that each really holds, case by case.

    python memory_worker.py SPEC.json RANK

The specification holds training settings by case; rank 0 writes what it counted. Counted are unique
storages: those that attributes of the engine name, and all that the process holds.
"""

import gc
import json
import os
import sys
from pathlib import Path


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    rank = int(sys.argv[2])
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(spec["world_size"]),
    )
    import torch

    torch.set_num_threads(1)
    # through a file: a free port may be another's by the time it is used
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{spec['rendezvous']}", rank=rank, world_size=spec["world_size"]
    )
    torch.manual_seed(0)
    folder = Path(spec["output"]).parent
    found = {name: run_case(train, folder / name) for name, train in spec["cases"].items()}
    if rank == 0:
        Path(spec["output"]).write_text(json.dumps(found))


def live():
    """All storages of tensors that Python can see, by address."""
    import torch

    gc.collect()
    tensors = [item for item in gc.get_objects() if torch.is_tensor(item)]
    tensors += [item.grad for item in tensors if item.is_leaf and item.grad is not None]
    return storages(tensors)


def storages(tensors):
    found = {}
    for tensor in tensors:
        if type(tensor).__name__ == "FakeTensor" or tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def run_case(train, folder):
    import torch

    from cil.models import build
    from pipelines.engine import start_engine
    from pipelines.settings import TrainConfig
    from pipelines.weight_average import ShardedEma

    before = live()
    config = TrainConfig(**train)
    model = build("tiny", seed=0, num_frames=8, height=32, width=32, downsampling=4)
    engine = start_engine(config, model)
    ema = ShardedEma(engine, config.ema_decay)
    steps = config.global_batch_size // config.num_workers
    dtype = next(engine.module.parameters()).dtype
    sample = torch.randn(1, 8, 8, 8, 8, dtype=dtype)
    tokens = torch.randn(1, 1, model.config.cross_attention_dim, dtype=dtype)
    time = torch.ones(1)
    peak = 0
    for number in range(2 * steps):
        ids = torch.ones(1, 3, dtype=dtype)
        out = engine(sample, time, tokens, ids, return_dict=False)[0]
        loss = out.float().square().mean()
        assert loss.isfinite()
        engine.backward(loss)
        del out, loss
        if number >= steps:  # the optimiser has its state only after the first update
            peak = max(peak, sum(size for key, size in live().items() if key not in before))
        engine.step()
    rest = {key: size for key, size in live().items() if key not in before}
    parameters = list(engine.module.parameters())
    weights = [getattr(p, "ds_tensor", p.data) for p in parameters] + [p.data for p in parameters]
    optimiser = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [
        value
        for state in optimiser.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.numel() > 1
    ]
    weights, masters = storages(weights), storages(ema._masters())
    result = {
        "weights": sum(weights.values()),
        "masters": sum(size for key, size in masters.items() if key not in weights),
        "optimiser": sum(storages(moments).values()),
        "average": sum(storages(ema.shards).values()),
        "between_steps": sum(rest.values()),
        "before_update": peak,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "trained": sum(getattr(p, "ds_numel", p.numel()) for p in parameters if p.requires_grad),
    }
    engine.save_checkpoint(str(folder))
    torch.distributed.barrier()
    state = [path for path in folder.rglob("*") if path.suffix == ".pt"]
    result["checkpoint"] = sum(path.stat().st_size for path in state)
    del sample, tokens, time, ids, weights, masters, moments, parameters, optimiser
    engine.destroy()
    del engine, ema, model
    return result


if __name__ == "__main__":
    main()
