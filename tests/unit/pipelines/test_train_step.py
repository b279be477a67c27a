import copy
import dataclasses
import math
from contextlib import ExitStack

import pytest
import torch

from cil.errors import ConfigError, StageError
from pipelines import train_step
from pipelines.batches import BatchReader
from pipelines.data_order import DataOrder
from pipelines.prefetch import Prefetch
from pipelines.shard_reader import ShardReader
from pipelines.train_step import NonFiniteLossError, TrainStep


class FakeEngine:
    """What `TrainStep` uses of a DeepSpeed engine: plain SGD, accumulation, no clipping.

    ``overflows`` has for each update how many attempts at it overflow before one succeeds.
    """

    device = torch.device("cpu")

    def __init__(self, network, *, accumulation=1, grad_norm=1.0, overflows=(), loss_scale=2.0**16):
        self.network = copy.deepcopy(network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0)
        self.losses, self.steps = [], 0
        self._accumulation, self._grad_norm = accumulation, grad_norm
        self.optimizer.loss_scale = loss_scale
        self._overflows, self._overflowed = list(overflows), False

    def __call__(self, *arguments, **named):
        return self.network(*arguments, **named)

    def backward(self, loss):
        self.losses.append(loss.item())
        (loss / self._accumulation).backward()

    def step(self):
        if len(self.losses) % self._accumulation:
            return
        self._overflowed = bool(self._overflows and self._overflows[0])
        if self._overflowed:
            self._overflows[0] -= 1
            self.optimizer.loss_scale = max(self.optimizer.loss_scale / 2, 1)
            self.optimizer.zero_grad()
        else:
            self._overflows = self._overflows[1:]
            self.steps += 1

    def get_global_grad_norm(self):
        return math.inf if self._overflowed else self._grad_norm

    def gradient(self):
        return torch.cat(
            [p.grad.flatten() for p in self.network.parameters() if p.grad is not None]
        )


@pytest.fixture(scope="module")
def reader(encoded_run):
    return ShardReader(encoded_run.dataset)


@pytest.fixture(scope="module")
def batches_of(encoded_run, reader):
    """Make the batch source of one rank."""

    def make(rank=0, world_size=1):
        return BatchReader(
            {reader.bucket: reader},
            global_batch_size=4,
            seed=encoded_run.config.seed,
            rank=rank,
            world_size=world_size,
        )

    return make


@pytest.fixture(scope="module")
def keys_of(encoded_run, reader):
    """Return the sample keys of a step."""
    order = DataOrder(
        {reader.bucket: len(reader)}, global_batch_size=4, seed=encoded_run.config.seed
    )
    return lambda step: [reader.key(index) for index in order.clips(step).indices]


@pytest.fixture
def step_of(encoded_run, tiny_model, batches_of, monkeypatch):
    """Make a `TrainStep` and its engine for one rank of a world that is not there."""
    # every rank sees the mean of its own loss: the mean over ranks is taken by the test
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda value: value.mul_(world[0]), raising=True
    )
    world = [1]

    def make(
        *, rank=0, world_size=1, wrap=lambda source: source, engine=None, impl="torch", **train
    ):
        world[0] = world_size
        config = dataclasses.replace(
            encoded_run.config,
            train=dataclasses.replace(encoded_run.config.train, num_workers=world_size, **train),
        )
        micro = config.train.micro_batch_size or 4 // world_size
        engine = FakeEngine(
            tiny_model.network, accumulation=4 // world_size // micro, **(engine or {})
        )
        batches = wrap(batches_of(rank, world_size))
        step = TrainStep(config, tiny_model, batches, engine, world_size=world_size, impl=impl)
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
    take, engine = step_of(engine={"grad_norm": 0.75})
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
    """A source whose clips are all the same one, with a wide posterior."""

    def __init__(self, source, reader, shift=0.0):
        self._source, self._mean = source, reader.clip(0).mean + shift

    def batch(self, step):
        batch = self._source.batch(step)
        mean = self._mean.expand(len(batch), *self._mean.shape)
        return dataclasses.replace(batch, mean=mean, std=torch.ones_like(mean))


@pytest.fixture
def drawn_latents(step_of, reader, monkeypatch):
    """Return what the loss is given for one step: clean and conditioning latents."""
    seen = []
    real = train_step.denoising_loss

    def loss(network, clean, conditioning, **settings):
        seen.append((clean, conditioning))
        return real(network, clean, conditioning, **settings)

    monkeypatch.setattr(train_step, "denoising_loss", loss)

    def take(step, shift=0.0, **settings):
        seen.clear()
        run, _ = step_of(wrap=lambda source: OneClip(source, reader, shift), **settings)
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


def test_the_conditioning_frame_is_drawn_for_each_clip_and_step(
    step_of, drawn_latents, reader, tiny_model
):
    clip = reader.clip(0)
    far = 1000.0 * torch.arange(len(clip.mean)).reshape(-1, 1, 1, 1)  # tells frames apart

    def frames(step, **settings):
        conditioning = drawn_latents(step, conditioning_frame="random", shift=far, **settings)[1]
        number = (conditioning / tiny_model.conditioning_scale).mean((1, 2, 3, 4)) / 1000
        return number.round().long().tolist()

    seen = [frames(step) for step in range(16)]
    assert seen[2] == frames(2, micro_batch_size=1)
    assert seen[2] == [n for rank in range(2) for n in frames(2, rank=rank, world_size=2)]
    assert any(len(set(step)) > 1 for step in seen), "a frame of its own for each clip"
    counts = torch.bincount(torch.tensor(seen).flatten(), minlength=len(clip.mean))
    assert (counts > 0).all()
    expected = 64 / len(clip.mean)
    assert float(((counts - expected) ** 2 / expected).sum()) < 30  # chi squared
    clean, first = drawn_latents(0)
    again, random = drawn_latents(0, conditioning_frame="random")
    assert torch.equal(clean, again), "the video and its noise stay the same"
    assert not torch.equal(first, random)


def test_splitting_the_batch_changes_no_sample(drawn_latents):
    whole = drawn_latents(2)
    parts = [drawn_latents(2, rank=rank, world_size=2) for rank in range(2)]
    single = drawn_latents(2, micro_batch_size=1)
    for index in range(2):
        joined = torch.cat([part[index] for part in parts])
        assert torch.equal(joined, whole[index])
        assert torch.equal(single[index], whole[index])


class Poisoned:
    """A source whose clip in one place of the global batch has latents that are not finite."""

    def __init__(self, source, slot, value):
        self._source, self._slot, self._value = source, slot, value
        self.keys = source.keys

    @classmethod
    def by(cls, slot, value):
        return lambda source: cls(source, slot, value)

    def batch(self, step):
        batch = self._source.batch(step)
        if self._slot in batch.slots:
            batch.mean[batch.slots.index(self._slot), 0, 0, 0, 0] = self._value
        return batch


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    step_of, keys_of, encoded_run, value, micro_batch_size
):
    take, engine = step_of(wrap=Poisoned.by(3, value), micro_batch_size=micro_batch_size)
    with pytest.raises(NonFiniteLossError, match=r"the loss of step 2 is (nan|inf)") as caught:
        take(2, learning_rate=0.1)
    assert engine.steps == 0
    assert len(engine.losses) == (3 if micro_batch_size else 0)
    assert all(key in str(caught.value) for key in keys_of(2))
    assert isinstance(caught.value, StageError)
    assert caught.value.record == {
        "step": 2,
        "what": "loss",
        "value": caught.value.record["value"],
        "seed": encoded_run.config.seed,
        "clips": keys_of(2),
    }
    assert caught.value.record["value"] in ("nan", "inf")


def test_every_rank_hears_of_a_broken_clip(step_of, monkeypatch):
    """The rank that has it must not leave the others waiting for its loss."""
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: sent.append(value.item()))
    take, engine = step_of(wrap=Poisoned.by(3, float("nan")), rank=1, world_size=2)
    with pytest.raises(NonFiniteLossError, match="the loss of step 0 is nan"):
        take(0, learning_rate=0.1)
    assert len(sent) == 1
    assert math.isnan(sent[0])
    assert engine.losses == []


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stops_the_run(step_of, reader, norm):
    """DeepSpeed then leaves the weights alone without a word, for ever if need be."""
    take, _ = step_of(engine={"grad_norm": norm})
    with pytest.raises(NonFiniteLossError, match=f"gradient norm of step 5 is {norm}") as caught:
        take(5, learning_rate=0.1)
    assert sum(reader.key(index) in str(caught.value) for index in range(len(reader))) >= 3


def test_a_missing_gradient_norm_is_no_error(step_of):
    take, _ = step_of(engine={"grad_norm": None})
    assert take(0, learning_rate=0.1)["grad_norm"] == 0.0


class OtherShape:
    """A source whose clips are those of a smaller bucket: fewer frames, rows and columns."""

    def __init__(self, source, frames, rows, columns):
        self._source, self._sizes = source, (frames, rows, columns)

    def batch(self, step):
        batch, (frames, rows, columns) = self._source.batch(step), self._sizes
        mean, std = (part[:, :frames, :, :rows, :columns] for part in (batch.mean, batch.std))
        return dataclasses.replace(batch, mean=mean, std=std)


@pytest.mark.parametrize("sizes", [(8, 8, 4), (4, 8, 8), (2, 4, 8)])
def test_a_step_takes_its_shapes_from_the_batch(step_of, sizes):
    """A model of one size trains on the buckets of the others."""
    take, engine = step_of(wrap=lambda source: OtherShape(source, *sizes))
    row = take(0, learning_rate=0.1)
    assert math.isfinite(row["loss"])
    assert engine.gradient().norm() > 0
    other, _ = step_of()
    assert other(0, learning_rate=0.1)["loss"] != row["loss"]


def test_a_batch_that_does_not_divide_is_refused(batches_of):
    with pytest.raises(ConfigError, match="4 clips does not divide over 3 workers"):
        batches_of(0, 3)


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


# -- a step that overflows in fp16 is tried again --------------------------------------------------


class Noted:
    """A source that notes what it gives."""

    def __init__(self, source):
        self._source, self.keys = source, source.keys
        self.given = []

    def batch(self, step):
        batch = self._source.batch(step)
        self.given.append((step, [record.key for record in batch.records]))
        return batch


@pytest.fixture
def noted(step_of):
    """Take three steps in fp16 on batches that are read ahead.

    Returns the rows, what was given, and the engine.
    """

    def take_all(**settings):
        sources = []

        def wrap(source):
            ahead = Prefetch(source, first_step=0, num_steps=3, num_batches=2)
            sources.append(Noted(ahead))
            ahead_of_all.enter_context(ahead)
            return sources[0]

        with ExitStack() as ahead_of_all:
            take, engine = step_of(wrap=wrap, precision="fp16", **settings)
            rows = [take(step, learning_rate=0.1) for step in range(3)]
        return rows, sources[0].given, engine

    return take_all


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_steps_that_overflow_leave_the_order_of_the_clips_as_it_is(
    noted, keys_of, micro_batch_size
):
    """Batches that are read ahead are given once each and in order, however often a step fails."""
    micro = micro_batch_size or 4
    plain, given, engine = noted(micro_batch_size=micro)
    expected = [(step, keys_of(step)) for step in range(3)]
    assert given == expected
    rows, given, other = noted(micro_batch_size=micro, engine={"overflows": [1, 3, 0]})
    assert given == expected
    assert (engine.steps, other.steps) == (3, 3)
    # every attempt had the clips and the noise of its step
    attempts = [losses_of(other.losses, 4 // micro, number) for number in range(7)]
    steps = [losses_of(engine.losses, 4 // micro, number) for number in range(3)]
    assert attempts == [steps[0]] * 2 + [steps[1]] * 4 + [steps[2]]
    assert len(other.losses) == 7 * 4 // micro
    # and a row tells of the attempt that counted, alone
    scales = [row.pop("loss_scale") for row in rows]
    assert scales == [2.0**15, 2.0**12, 2.0**12]
    assert [row.pop("loss_scale") for row in plain] == [2.0**16] * 3
    assert rows == plain


def losses_of(losses, share, attempt):
    return losses[attempt * share : (attempt + 1) * share]


def test_every_attempt_has_the_same_gradient(step_of):
    gradients = []
    for overflows in ([], [2]):
        take, engine = step_of(precision="fp16", engine={"overflows": overflows})
        take(1, learning_rate=0.1)
        gradients.append(engine.gradient())
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(step_of, keys_of):
    take, engine = step_of(precision="fp16", engine={"overflows": [99], "loss_scale": 8.0})
    with pytest.raises(NonFiniteLossError, match="the gradient norm of step 4 is inf") as caught:
        take(4, learning_rate=0.1)
    # 8 -> 4 -> 2 -> 1: the third fails at the scale of 2, and halves it to the smallest
    assert len(engine.losses) == 3
    assert engine.steps == 0
    assert caught.value.record["clips"] == keys_of(4)


def test_without_a_loss_scale_no_step_is_tried_again(step_of):
    take, engine = step_of(precision="bf16", engine={"overflows": [1]})
    with pytest.raises(NonFiniteLossError, match="the gradient norm of step 0 is inf"):
        take(0, learning_rate=0.1)
    assert len(engine.losses) == 1
