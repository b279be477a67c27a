import pytest

from cil.errors import DataError, StageError
from pipelines import runtime
from pipelines.runtime import check_resources, ray_session, root_cause, worker_environment
from pipelines.settings import ClusterConfig


class Wrapped(Exception):
    """An error that names its cause as Ray's do."""

    def __init__(self, message, cause):
        super().__init__(message)
        self.cause = cause


def raised(outer, inner):
    """Return ``outer`` as it is after `raise outer from inner`."""
    try:
        raise outer from inner
    except type(outer) as error:
        return error


def test_the_root_is_found_through_both_ways_of_wrapping():
    root = DataError("broken clip")
    assert root_cause(root) is root
    assert root_cause(Wrapped("task", root)) is root
    assert root_cause(raised(RuntimeError("outer"), root)) is root
    assert root_cause(Wrapped("task", raised(RuntimeError("middle"), Wrapped("x", root)))) is root


def test_a_cause_that_is_no_error_is_passed_over():
    """Some errors have a text or a code of that name."""
    root = DataError("broken clip")
    for odd in ("a text", 5, None, DataError):
        assert root_cause(raised(Wrapped("task", odd), root)) is root
        lonely = Wrapped("task", odd)
        assert root_cause(lonely) is lonely


def test_a_circle_of_causes_ends():
    one, two = Wrapped("one", None), Wrapped("two", None)
    one.cause, two.cause = two, one
    assert root_cause(one) in (one, two)
    one.cause = one
    assert root_cause(one) is one


def test_cpu_workers_are_told_what_deepspeed_reads_on_import():
    assert worker_environment(use_gpu=False)["DS_ACCELERATOR"] == "cpu"
    assert worker_environment(use_gpu=True)["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    assert "DS_ACCELERATOR" not in worker_environment(use_gpu=True)
    worker_environment(use_gpu=False)["DS_ACCELERATOR"] = "changed"
    assert worker_environment(use_gpu=False)["DS_ACCELERATOR"] == "cpu"


@pytest.fixture
def ray(monkeypatch):
    """Ray with the calls of a session replaced: no cluster is started."""
    import ray

    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: calls.append(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(runtime, "_quieten", lambda level: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_calls = calls
    return ray, ray_calls


@pytest.mark.parametrize(
    ("workers", "each", "words"),
    [
        (3, {"CPU": 1}, "train.num_workers = 3 needs 3 CPU, the cluster has 2"),
        (1, {"CPU": 4}, "train.num_workers = 1 needs 4 CPU, the cluster has 2"),
        (2, {"CPU": 1, "GPU": 1}, "train.num_workers = 2 needs 2 GPU, the cluster has 0"),
    ],
)
def test_more_than_the_cluster_has_is_refused_instead_of_waited_for(ray, workers, each, words):
    with pytest.raises(StageError, match=f"{words}; lower train.num_workers"):
        check_resources(workers, each, "train.num_workers")


@pytest.fixture
def autoscaler(ray, monkeypatch):
    """A cluster that has what was asked for after so many looks; returns what was asked."""
    from ray.autoscaler import sdk

    module, _ = ray
    asked, looks = [], []

    def grow_after(number):
        def resources():
            looks.append(1)
            return {"CPU": 2.0, "GPU": 4.0} if asked and len(looks) > number else {"CPU": 2.0}

        monkeypatch.setattr(module, "cluster_resources", resources)
        return asked

    monkeypatch.setattr(sdk, "request_resources", lambda *, bundles: asked.append(bundles))
    monkeypatch.setattr(runtime, "_SCALE_UP_POLL_S", 0.01)
    return grow_after


def test_nodes_that_come_up_are_waited_for_and_the_request_is_taken_back(autoscaler):
    asked = autoscaler(5)
    needed = {"CPU": 0.5, "GPU": 1.0}
    assert check_resources(4, needed, "train.num_workers", scale_up_s=60) is None
    assert asked == [[needed] * 4, []]


def test_nodes_that_never_come_up_end_the_wait(autoscaler):
    asked = autoscaler(10**9)
    words = "needs 4 GPU, the cluster has 0, after a wait of 0.2 s for more nodes; lower"
    with pytest.raises(StageError, match=words):
        check_resources(4, {"GPU": 1.0}, "train.num_workers", scale_up_s=0.2)
    assert asked == [[{"GPU": 1.0}] * 4, []]


def test_without_a_wait_the_autoscaler_is_not_asked(autoscaler):
    asked = autoscaler(0)
    with pytest.raises(StageError, match="the cluster has 0; lower"):
        check_resources(4, {"GPU": 1.0}, "train.num_workers")
    assert asked == []


def test_what_fits_is_fine(ray):
    assert check_resources(2, {"CPU": 1}, "train.num_workers") is None


def test_a_session_is_closed_also_after_an_error(ray):
    _, calls = ray
    with pytest.raises(RuntimeError, match="inside"), ray_session(ClusterConfig(num_cpus=3)):
        raise RuntimeError("inside")
    settings, end = calls
    assert (settings["num_cpus"], settings["address"]) == (3, "local")
    assert end == "shutdown"


def test_a_session_inside_another_leaves_that_one_open(ray, monkeypatch):
    module, calls = ray
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    with ray_session(ClusterConfig()):
        pass
    assert calls == []


def test_the_address_comes_from_the_settings_then_the_environment(ray, monkeypatch):
    _, calls = ray
    monkeypatch.setenv("RAY_ADDRESS", "ray://from-environment:10001")
    with ray_session(ClusterConfig(num_cpus=3)):
        assert calls[0]["address"] == "ray://from-environment:10001"
        assert calls[0]["num_cpus"] is None  # Ray refuses the number of another cluster
    with ray_session(ClusterConfig(address="ray://from-settings:10001")):
        assert calls[2]["address"] == "ray://from-settings:10001"


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, RuntimeError])
def test_a_cluster_that_cannot_be_reached_is_explained(ray, monkeypatch, kind):
    module, calls = ray

    def fail(**_):
        raise kind("no answer")

    monkeypatch.setattr(module, "init", fail)
    words = "cannot reach Ray at ray://head:1: no answer; check cluster.address and RAY_ADDRESS"
    with pytest.raises(StageError) as caught, ray_session(ClusterConfig(address="ray://head:1")):
        pass
    assert str(caught.value) == words
    assert calls == []


def test_what_the_driver_has_set_goes_to_gpu_workers(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert worker_environment(use_gpu=True)["NCCL_DEBUG"] == "INFO"
    monkeypatch.delenv("NCCL_DEBUG")
    assert worker_environment(use_gpu=True)["NCCL_DEBUG"] == "WARN"


@pytest.mark.parametrize(
    ("setting", "variable", "joined"),
    [(None, None, "local"), (None, "10.0.0.1:6379", "10.0.0.1:6379"), ("auto", "x:1", "auto")],
)
def test_only_a_cluster_that_is_named_is_joined(ray, monkeypatch, setting, variable, joined):
    """Ray itself would join whatever `ray start` has left on the machine."""
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with ray_session(ClusterConfig(address=setting, num_cpus=3)):
        pass
    started, ended = ray[1]
    assert (started["address"], ended) == (joined, "shutdown")
    assert started["num_cpus"] == (3 if joined == "local" else None)
