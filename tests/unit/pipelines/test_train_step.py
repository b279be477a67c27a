import copy
import dataclasses
import math

import pytest
import torch

from cil.errors import ConfigError, StageError
from pipelines import train_step
from pipelines.data_order import clip_indices
from pipelines.shards import ShardReader
from pipelines.train_step import NonFiniteLossError, TrainStep


class FakeEngine:
    """What `TrainStep` uses of a DeepSpeed engine: plain SGD, accumulation, no clipping."""

    device = torch.device("cpu")

    def __init__(self, network, *, accumulation=1, grad_norm=1.0):
        self.network = copy.deepcopy(network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0)
        self.losses, self.steps = [], 0
        self._accumulation, self._grad_norm = accumulation, grad_norm

    def __call__(self, *arguments, **named):
        return self.network(*arguments, **named)

    def backward(self, loss):
        self.losses.append(loss.item())
        (loss / self._accumulation).backward()

    def step(self):
        if len(self.losses) % self._accumulation == 0:
            self.steps += 1

    def get_global_grad_norm(self):
        return self._grad_norm

    def gradient(self):
        return torch.cat(
            [p.grad.flatten() for p in self.network.parameters() if p.grad is not None]
        )


@pytest.fixture(scope="module")
def reader(encoded_run):
    return ShardReader(encoded_run.dataset)


@pytest.fixture
def step_of(encoded_run, tiny_model, reader, monkeypatch):
    """Make a `TrainStep` and its engine for one rank of a world that is not there."""
    # every rank sees the mean of its own loss: the mean over ranks is taken by the test
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda value: value.mul_(world[0]), raising=True
    )
    world = [1]

    def make(*, rank=0, world_size=1, clips=reader, grad_norm=1.0, impl="torch", **train):
        world[0] = world_size
        config = dataclasses.replace(
            encoded_run.config,
            train=dataclasses.replace(encoded_run.config.train, num_workers=world_size, **train),
        )
        micro = config.train.micro_batch_size or 4 // world_size
        engine = FakeEngine(
            tiny_model.network, accumulation=4 // world_size // micro, grad_norm=grad_norm
        )
        step = TrainStep(
            config, tiny_model, clips, engine, rank=rank, world_size=world_size, impl=impl
        )
        return step, engine

    return make


def taken(step_of, step, **settings):
    """Take one step on every rank; returns mean loss and mean gradient."""
    world_size = settings.pop("world_size", 1)
    losses, gradients = [], []
    for rank in range(world_size):
        take, engine = step_of(rank=rank, world_size=world_size, **settings)
        losses.append(take(step, learning_rate=0.1)["loss"])
        gradients.append(engine.gradient())
        assert engine.steps == 1
    return sum(losses) / world_size, torch.stack(gradients).mean(0)


@pytest.mark.parametrize("split", [{"world_size": 2}, {"world_size": 4}, {"micro_batch_size": 1}])
def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_split(step_of, split):
    """Noise, noise level and order belong to the place in the batch, not to the worker."""
    loss, gradient = taken(step_of, 3)
    other_loss, other_gradient = taken(step_of, 3, **split)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert gradient.norm() > 0
    assert (other_gradient - gradient).norm() < 1e-4 * gradient.norm()


def test_the_kernels_take_the_same_step(step_of):
    """On a CPU the operators are their twin in torch; the way to them is that of a GPU."""
    loss, gradient = taken(step_of, 3, condition_dropout=0.5)
    other_loss, other_gradient = taken(step_of, 3, condition_dropout=0.5, impl="triton")
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (other_gradient - gradient).norm() < 1e-4 * gradient.norm()


def test_a_step_is_a_pure_function_of_its_number(step_of):
    take, _ = step_of()
    first = take(0, learning_rate=0.1)
    take(1, learning_rate=0.1)
    again, _ = step_of()
    second = again(1, learning_rate=0.1)
    repeated, _ = step_of()
    assert repeated(0, learning_rate=0.1) == first
    assert second["loss"] != first["loss"]
    assert second["sigma_cond"] != first["sigma_cond"]


def test_a_row_says_what_was_done(step_of):
    take, engine = step_of(grad_norm=0.75)
    row = take(0, learning_rate=0.125)
    assert {name: row[name] for name in ("grad_norm", "learning_rate", "clips")} == {
        "grad_norm": 0.75,
        "learning_rate": 0.125,
        "clips": 4.0,
    }
    assert row["loss"] == pytest.approx(engine.losses[0])
    assert row["sigma_cond"] > 0
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.125]


def test_micro_batches_make_one_update_and_one_loss(step_of):
    take, engine = step_of(micro_batch_size=1)
    row = take(0, learning_rate=0.1)
    assert (len(engine.losses), engine.steps) == (4, 1)
    assert row["loss"] == pytest.approx(sum(engine.losses) / 4)


class OneClip:
    """A reader whose clips are all the same one, with a wide posterior."""

    key = staticmethod(str)

    def __init__(self, reader):
        clip = reader.clip(0)
        self._clip = dataclasses.replace(clip, std=torch.ones_like(clip.std))

    def __len__(self):
        return 10

    def clip(self, index):
        return self._clip


@pytest.fixture
def drawn_latents(step_of, reader, monkeypatch):
    """Return what the loss is given for one step: clean and conditioning latents."""
    seen = []
    real = train_step.denoising_loss

    def loss(network, clean, conditioning, **settings):
        seen.append((clean, conditioning))
        return real(network, clean, conditioning, **settings)

    monkeypatch.setattr(train_step, "denoising_loss", loss)

    def take(step, **settings):
        seen.clear()
        run, _ = step_of(clips=OneClip(reader), **settings)
        run(step, learning_rate=0.0)
        return [torch.cat(parts) for parts in zip(*seen, strict=True)]

    return take


def test_each_place_and_each_step_has_its_own_sample_of_the_posterior(drawn_latents, reader):
    clean, conditioning = drawn_latents(0)
    later_clean, later_conditioning = drawn_latents(1)
    # the same clip four times, so only the noise can tell them apart
    for latents in (clean, conditioning, torch.cat([clean, later_clean])):
        rows = latents.flatten(1)
        assert len({row.numpy().tobytes() for row in rows}) == len(rows)
    assert not torch.equal(conditioning, later_conditioning)
    # the condition has a sample of its own, not that of the first frame of the video
    assert not torch.allclose(conditioning[:, 0], clean[:, 0])


def test_latents_are_scaled_and_have_the_posteriors_moments(drawn_latents, reader, tiny_model):
    scale = tiny_model.first_stage.scaling_factor
    clip = reader.clip(0)
    clean = torch.cat([drawn_latents(step)[0] for step in range(8)])
    noise = clean / scale - clip.mean
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(1, abs=4 / noise.numel() ** 0.5)
    _, conditioning = drawn_latents(0)
    assert conditioning.shape[1:] == (1, *clip.mean.shape[1:])
    noise = conditioning / tiny_model.conditioning_scale - clip.mean[:1]
    assert noise.std() == pytest.approx(1, abs=5 / noise.numel() ** 0.5)


def test_splitting_the_batch_changes_no_sample(drawn_latents):
    whole = drawn_latents(2)
    parts = [drawn_latents(2, rank=rank, world_size=2) for rank in range(2)]
    single = drawn_latents(2, micro_batch_size=1)
    for index in range(2):
        joined = torch.cat([part[index] for part in parts])
        assert torch.equal(joined, whole[index])
        assert torch.equal(single[index], whole[index])


class Poisoned:
    """A reader of whose clips one has latents that are not finite."""

    def __init__(self, reader, bad, value):
        self._reader, self._bad, self._value = reader, bad, value
        self.key = reader.key

    def __len__(self):
        return len(self._reader)

    def clip(self, index):
        clip = self._reader.clip(index)
        if index == self._bad:
            clip.mean[0, 0, 0, 0] = self._value
        return clip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    step_of, encoded_run, reader, value, micro_batch_size
):
    indices = clip_indices(
        num_clips=len(reader), global_batch_size=4, step=2, seed=encoded_run.config.seed
    )
    poisoned = Poisoned(reader, indices[-1], value)
    take, engine = step_of(clips=poisoned, micro_batch_size=micro_batch_size)
    with pytest.raises(NonFiniteLossError, match=r"the loss of step 2 is (nan|inf)") as caught:
        take(2, learning_rate=0.1)
    assert engine.steps == 0
    assert len(engine.losses) == (3 if micro_batch_size else 0)
    assert all(reader.key(index) in str(caught.value) for index in indices)
    assert isinstance(caught.value, StageError)
    assert caught.value.record == {
        "step": 2,
        "what": "loss",
        "value": caught.value.record["value"],
        "seed": encoded_run.config.seed,
        "clips": [reader.key(index) for index in indices],
    }
    assert caught.value.record["value"] in ("nan", "inf")


def test_every_rank_hears_of_a_broken_clip(step_of, encoded_run, reader, monkeypatch):
    """The rank that has it must not leave the others waiting for its loss."""
    indices = clip_indices(
        num_clips=len(reader), global_batch_size=4, step=0, seed=encoded_run.config.seed
    )
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: sent.append(value.item()))
    poisoned = Poisoned(reader, indices[-1], float("nan"))
    take, engine = step_of(clips=poisoned, rank=1, world_size=2)
    with pytest.raises(NonFiniteLossError, match="the loss of step 0 is nan"):
        take(0, learning_rate=0.1)
    assert len(sent) == 1
    assert math.isnan(sent[0])
    assert engine.losses == []


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stops_the_run(step_of, reader, norm):
    """DeepSpeed then leaves the weights alone without a word, for ever if need be."""
    take, _ = step_of(grad_norm=norm)
    with pytest.raises(NonFiniteLossError, match=f"gradient norm of step 5 is {norm}") as caught:
        take(5, learning_rate=0.1)
    assert sum(reader.key(index) in str(caught.value) for index in range(len(reader))) >= 3


def test_a_missing_gradient_norm_is_no_error(step_of):
    take, _ = step_of(grad_norm=None)
    assert take(0, learning_rate=0.1)["grad_norm"] == 0.0


def test_a_batch_that_does_not_divide_is_refused(encoded_run, tiny_model, reader):
    engine = FakeEngine(tiny_model.network)
    with pytest.raises(ConfigError, match="4 clips does not divide over 3 workers"):
        TrainStep(encoded_run.config, tiny_model, reader, engine, rank=0, world_size=3)


def test_one_more_worker_gives_each_clip_the_same_noise(step_of, encoded_run):
    """The loss of a rank is that of its places in the global batch."""
    parts = []
    for rank in range(4):
        take, engine = step_of(rank=rank, world_size=4)
        take(1, learning_rate=0.1)
        parts += engine.losses
    take, engine = step_of(micro_batch_size=1)
    take(1, learning_rate=0.1)
    assert parts == pytest.approx(engine.losses, rel=1e-5)
    assert len(set(parts)) == 4
