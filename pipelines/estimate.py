"""Stage 3, on Ray Data: latent shards in, the statistics of Analytic-Init out.

Each task reads one shard and returns the float64 moments of its latents; the driver merges them in
the order of the shards, which is exact under any partition. Shards also carry the moments that were
taken while they were written: they must agree, or the data set is damaged.
Run: `cil estimate --config configs/demo.yaml`.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cil.analytic_init import AnalyticInit
from cil.errors import DataError, StageError
from cil.moments import LatentMoments
from pipelines.config import RunConfig, config_to_yaml, content_hash, dataset_of
from pipelines.dataset import located, open_dataset
from pipelines.progress import stage_progress
from pipelines.ray_map import map_rows
from pipelines.report import RunReport, Stopwatch
from pipelines.runtime import ray_session
from pipelines.shard_reader import ShardReader
from pipelines.shards import moments_of, read_moments
from pipelines.storage import commit, temporary_beside, write_atomic

__all__ = ["ESTIMATE_FOLDER", "STATISTICS_FILE", "run", "shard_moments"]

ESTIMATE_FOLDER = "estimate"
STATISTICS_FILE = "analytic_init.safetensors"


def run(config: RunConfig, *, session: ExitStack, debug: bool = False) -> RunReport:
    """Estimate mean and total variance of the data set's latents.

    Args:
        config: the run.
        session: where the Ray session is entered if one is needed.
        debug: show Ray's own logs.

    Returns:
        Path of the statistics and their values.

    Raises:
        DataError: there is no data set, or a shard is damaged.
        StageError: a task failed.
    """
    watch = Stopwatch()
    output = Path(config.output.dir)
    dataset, folder = open_dataset(config), output / ESTIMATE_FOLDER
    manifest = dataset.manifest
    identity = content_hash(
        {"manifest": manifest.fingerprint, "bucket": dataset.bucket, "version": 2}
    )
    done, path = folder / "report.json", folder / STATISTICS_FILE
    if done.exists() and path.exists():
        report = RunReport.load(done)
        if report.inputs.get("identity") == identity:
            return RunReport(**{**asdict(report), "reused": True, "seconds": watch.seconds()})
    write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
    session.enter_context(ray_session(config.cluster, debug=debug))
    moments = moments_of(_moments_by_shard(config, dataset))
    if moments.count != len(dataset):
        raise StageError(
            f"{moments.count} clips were counted, the manifest states {len(dataset)}; run encode "
            "again"
        )
    scale = dataset.first_stage().scaling_factor
    notes = {
        "dataset": manifest.fingerprint,
        "bucket": dataset.bucket,
        "scaling_factor": repr(scale),
    }
    statistics = AnalyticInit.from_moments(moments, notes).scaled(scale)
    temporary = temporary_beside(path).with_suffix(".safetensors")
    statistics.save(temporary)
    commit(temporary, path)
    report = RunReport(
        stage="estimate",
        reused=False,
        inputs={"dataset": manifest.fingerprint, "identity": identity, "scaling_factor": scale},
        outputs={"analytic_init": str(path)},
        metrics={
            "clips": float(moments.count),
            "variance": float(statistics.variance),
            "mean_square_of_mean": float(statistics.mean.double().square().mean()),
        },
        seconds=watch.seconds(),
    )
    report.save(done)
    return report


def shard_moments(batch: dict[str, np.ndarray], *, config: RunConfig) -> dict[str, np.ndarray]:
    """Take the moments of one shard from its clips and compare them with the stored ones.

    Args:
        batch: ``first`` and ``count``, the shard's clips in the manifest's order, and ``name``.
        config: the run.

    Returns:
        The moments as columns.

    Raises:
        DataError: the stored moments are not those of the clips.
    """
    torch.set_num_threads(1)
    (name,), (first,), (count,) = batch["name"], batch["first"], batch["count"]
    reader = open_dataset(config, num_sharers=config.encode.num_workers)
    moments = LatentMoments()
    for index in range(int(first), int(first) + int(count)):
        clip = reader.clip(index)
        moments.update(clip.mean.double()[None], clip.std.double()[None])
    stored = read_moments(dataset_of(config), str(name))
    tensors = moments.state_dict()
    for key, value in stored.state_dict().items():
        if not torch.allclose(value, tensors[key], rtol=1e-12, atol=1e-12):
            raise DataError(f"the stored moments of {name} are not those of its clips: {key}")
    columns = {key: value.numpy()[None] for key, value in tensors.items()}
    return {"name": np.array([str(name)]), **columns}


def _moments_by_shard(config: RunConfig, dataset: ShardReader) -> dict[str, LatentMoments]:
    names = [entry.name for entry in dataset.entries]
    counts = [entry.count for entry in dataset.entries]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    # 1:1, a shard becomes its moments: two tensors of the size of one clip.
    results = map_rows(
        [
            {"name": name, "first": first, "count": count}
            for name, first, count in zip(names, starts, counts, strict=True)
        ],
        shard_moments,
        settings={"config": located(config)},
        concurrency=config.encode.num_workers,
        max_retries=config.encode.max_retries,
        doing="estimation",
    )
    parts: dict[str, LatentMoments] = {}
    with stage_progress("estimate: shards", len(names)) as progress:
        for row in results:
            name = str(row.pop("name"))
            tensors = {key: torch.from_numpy(np.array(value)) for key, value in row.items()}
            parts[name] = LatentMoments.from_state_dict(tensors)
            progress.advance()
    return parts
