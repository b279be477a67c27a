"""Sweep files, and stages that take notes instead of working."""

import pytest
import yaml

from pipelines.report import RunReport
from pipelines.storage import write_json
from pipelines.sweep.arms import plan_sweep
from pipelines.sweep.runner import StageFunctions
from pipelines.sweep.sweep_file import read_sweep_file


@pytest.fixture
def write_sweep(tmp_path):
    """Write a sweep file beside a base; returns its path."""

    def write(arms, *, base=None, **more):
        (tmp_path / "base.yaml").write_text(
            yaml.safe_dump(
                {
                    "train": {"num_steps": 4, "global_batch_size": 4},
                    "output": {"dir": str(tmp_path / "out")},
                    "data": {"videos": str(tmp_path)},
                }
            )
        )
        path = tmp_path / "compare.yaml"
        raw = {"base": base or "base.yaml", "arms": arms, **more}
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    return write


@pytest.fixture
def make_sweep(write_sweep):
    """Read and plan a sweep of these arms."""

    def make(arms, **more):
        file = read_sweep_file(write_sweep(arms, **more))
        return plan_sweep(file, file.base)

    return make


class NotedStages:
    """Stages that write down their calls; `fail` names (stage, arm folder part) that raise."""

    def __init__(self):
        self.calls = []
        self.named = []
        self.fail = {}
        self.done = set()

    def functions(self):
        return StageFunctions(
            **{name: self._stage(name) for name in StageFunctions.__dataclass_fields__}
        )

    def _stage(self, name):
        def run(config, **named):
            folder = config.output.dir
            arm = folder.rpartition("/arms/")[2] if "/arms/" in folder else "base"
            self.calls.append((name, arm))
            self.named.append((name, arm, named, config))
            error = self.fail.get((name, arm))
            if error is not None:
                raise error
            reused = (name, arm) in self.done
            self.done.add((name, arm))
            outputs = {"dataset": "data", "fingerprint": "f" * 8}
            report = RunReport(
                stage=name, reused=reused, inputs={}, outputs=outputs, metrics={}, seconds=0.5
            )
            if name == "estimate" and arm == "base":
                write_json(config_folder(config) / "report.json", {"of": "base"})
                (config_folder(config) / "analytic_init.safetensors").write_bytes(b"statistics")
            return report

        return run


def config_folder(config):
    from pathlib import Path

    return Path(config.output.dir) / "estimate"


@pytest.fixture
def noted():
    """Stages that take notes."""
    return NotedStages()
