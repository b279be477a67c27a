"""Every environment variable that this project sets, where, and why: the one source for all.

The code takes them from here (`runtime.py`); `infra/Dockerfile`, `infra/runtime_env.yaml` and the
table in `infra/README.md` are compared with it by `tests/unit/test_infra.py`.
"""

from dataclasses import dataclass

__all__ = ["VARIABLES", "Variable", "variables_for"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    value: str
    """What it is set to; empty if only the operator can know."""
    places: frozenset[str]
    """Of: driver, cpu_worker, gpu_worker, job (runtime_env.yaml), image and gpu_image (Dockerfile),
    operator (set by whoever runs the cluster)."""
    why: str


def _variable(name: str, value: str, places: str, why: str) -> Variable:
    return Variable(name=name, value=value, places=frozenset(places.split()), why=why)


VARIABLES = (
    _variable(
        "RAY_USAGE_STATS_ENABLED",
        "0",
        "driver job image gpu_image",
        "nothing is sent to Ray's makers",
    ),
    _variable(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "0.2",
        "driver",
        "a worker's report waits for the controller's next look, by default up to 2 s",
    ),
    _variable(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "0",
        "driver",
        "Ray would hide the GPUs from tasks that ask for none, and warns of that",
    ),
    _variable(
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
        "false",
        "job image gpu_image",
        "a registered model is never unpickled",
    ),
    _variable(
        "DS_ACCELERATOR",
        "cpu",
        "cpu_worker",
        "DeepSpeed reads it when it is imported; without it, it guesses",
    ),
    _variable(
        "OMP_NUM_THREADS",
        "1",
        "cpu_worker",
        "several workers share a host; on GPUs it stays what Ray sets, which DeepSpeed's Adam "
        "on the CPU needs",
    ),
    _variable(
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "1",
        "gpu_worker",
        "a collective that fails or times out ends the worker, so Ray can start all of them again",
    ),
    _variable("NCCL_DEBUG", "WARN", "gpu_worker", "NCCL says why it failed, and nothing else"),
    _variable(
        "PYTORCH_CUDA_ALLOC_CONF",
        "expandable_segments:True",
        "gpu_worker",
        "buckets of several sizes leave fewer holes in the GPU's memory",
    ),
    _variable(
        "TORCH_EXTENSIONS_DIR",
        "/opt/cil/torch_extensions",
        "image gpu_image",
        "what is compiled on first use belongs to one image, not to a home folder that nodes share",
    ),
    _variable(
        "NCCL_SOCKET_IFNAME",
        "",
        "operator",
        "the network interface between the nodes, if a host has several",
    ),
    _variable("GLOO_SOCKET_IFNAME", "", "operator", "the same for workers without a GPU"),
    _variable(
        "RAY_AUTH_MODE",
        "token",
        "operator",
        "without it everyone who reaches the ports of `ray start` can run code; for `ray start` "
        "and `ray job submit`",
    ),
    _variable(
        "RAY_AUTH_TOKEN_PATH",
        "",
        "operator",
        "file with the token, from a secret; never in an image or in a job's environment",
    ),
)


def variables_for(place: str) -> dict[str, str]:
    """Return names and values of what is set in one place."""
    return {variable.name: variable.value for variable in VARIABLES if place in variable.places}
