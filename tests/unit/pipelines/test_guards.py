import json
import threading
import time

import pytest

from pipelines import watch
from pipelines.guards import Beat, SpikeRule, find_stall
from pipelines.settings import TrainConfig
from pipelines.watch import Heartbeat, LossWatch, WatchBoard


def rows(losses, first=0):
    return [{"step": float(first + n), "loss": loss} for n, loss in enumerate(losses)]


def rule(**settings):
    return SpikeRule(TrainConfig(**{"spike_window": 20, "spike_deviation": 10.0, **settings}))


# -- loss spikes ----------------------------------------------------------------------------------


def test_a_loss_far_above_those_before_is_found():
    spikes = rule().see(rows([1.0, 1.1, 0.9, 1.05, 0.95] * 4 + [3.0, 1.0]))
    (spike,) = spikes
    assert (spike.step, spike.loss) == (20, 3.0)
    # median 1.0, MAD 0.05 by hand
    assert spike.median == pytest.approx(1.0)
    assert spike.limit == pytest.approx(1.0 + 10 * 0.05)
    assert "step 20" in spike.text(["k1", "k2"])
    assert "k1, k2" in spike.text(["k1", "k2"])


@pytest.mark.parametrize(("loss", "found"), [(1.49, 0), (1.51, 1)])
def test_the_band_is_that_of_median_and_deviation(loss, found):
    assert len(rule().see(rows([1.0, 1.1, 0.9, 1.05, 0.95] * 4 + [loss]))) == found


def test_a_fall_and_a_slow_drift_are_no_spikes():
    assert rule().see(rows([1.0] * 20 + [0.01])) == []
    assert rule().see(rows([1.0 + 0.01 * step for step in range(100)])) == []


def test_losses_that_do_not_differ_need_more_than_the_last_digit():
    assert rule().see(rows([1.0] * 20 + [1.05])) == []
    assert len(rule().see(rows([1.0] * 20 + [1.2]))) == 1


def test_the_first_steps_have_nothing_to_be_compared_with():
    assert rule().see(rows([1.0] * 9 + [100.0])) == []


def test_one_warning_in_so_many_steps():
    quiet = [1.0, 1.1, 0.9, 1.05, 0.95] * 4
    found = rule(spike_pause_steps=8).see(rows([*quiet, 9.0, 9.0, 1.0, 9.0, 1, 1, 1, 1, 9.0]))
    assert [spike.step for spike in found] == [20, 28]


def test_reports_in_parts_and_a_restart_find_the_same():
    losses = rows([1.0, 1.1, 0.9, 1.05, 0.95] * 4 + [3.0])
    parts = rule()
    assert [spike for part in losses for spike in parts.see([part])] == rule().see(losses)
    again = rule()
    again.remember(losses[:15])
    assert again.see(losses[15:]) == rule().see(losses)


class Remote:
    """Stands for an actor's method: the call is noted."""

    def __init__(self):
        self.calls = []

    def remote(self, *arguments):
        self.calls.append(arguments)


class Board:
    """Stands for the handle of an actor."""

    def __init__(self):
        self.warn = Remote()


def test_the_warning_names_the_clips_of_the_step(encoded_run):
    from pipelines.data_order import DataOrder
    from pipelines.dataset import open_dataset

    board = Board()
    seen = LossWatch(encoded_run.config, board)
    before = []
    seen.see(rows([1.0, 1.01] * 10), lambda: before.append(1) or [])
    seen.see(rows([5.0], first=20), lambda: before.append(1) or [])
    ((spike, text),) = board.warn.calls
    reader = open_dataset(encoded_run.config)
    order = DataOrder({reader.bucket: len(reader)}, global_batch_size=4, seed=0)
    assert spike.step == 20
    assert all(reader.key(index) in text for index in order.clips(20).indices)
    assert before == [1], "the rows before are read once"


# -- workers that stand still ---------------------------------------------------------------------


def beat(rank, count, phase="batch", *, step=7, world_size=3, node="10.0.0.1"):
    return Beat(rank=rank, world_size=world_size, node=node, step=step, phase=phase, count=count)


def stall_of(beats, *, changed=100.0, heard=None, now=200.0, limit_s=60.0):
    ranks = {one.rank: one for one in beats}
    return find_stall(
        ranks,
        changed=dict.fromkeys(ranks, changed),
        heard=heard or dict.fromkeys(ranks, now),
        now=now,
        limit_s=limit_s,
    )


def test_the_worker_that_has_not_arrived_is_named_and_not_those_that_wait():
    late = beat(1, 40, "batch", node="10.0.0.2 (abc)")
    stall = stall_of([beat(0, 42, "reduce"), late, beat(2, 42, "reduce")])
    assert stall.behind == (late,)
    assert stall.waiting == 2
    text = stall.text()
    assert "rank 1 on node 10.0.0.2 (abc) is in batch of step 7" in text
    assert "rank 0" not in text
    assert "for 100 s" in text


def test_a_worker_a_step_behind_is_named_though_its_phase_comes_later():
    stall = stall_of([beat(0, 44, "batch", step=8), beat(1, 43, "backward"), beat(2, 44, step=8)])
    assert [one.rank for one in stall.behind] == [1]


def test_nothing_is_said_while_any_worker_goes_on_or_before_the_first():
    late = {0: beat(0, 40), 1: beat(1, 41)}
    heard = {0: 200.0, 1: 200.0}
    assert find_stall(late, changed={0: 100, 1: 190}, heard=heard, now=200, limit_s=60) is None
    assert find_stall({}, changed={}, heard={}, now=200, limit_s=60) is None
    assert stall_of([beat(0, 1)], changed=141.0) is None
    assert stall_of([beat(0, 1)], changed=140.0) is not None


def test_at_one_place_it_is_the_one_that_is_not_heard_of():
    beats = [beat(rank, 42, "backward") for rank in range(3)]
    together = stall_of(beats)
    assert len(together.behind) == 3
    assert "all are at the same place" in together.text()
    silent = stall_of(beats, heard={0: 199.0, 1: 199.0, 2: 110.0})
    assert [one.rank for one in silent.behind] == [2]
    assert "rank 2" in silent.text()
    assert "not heard of any more" in silent.text()


def test_the_board_tells_the_time_since_a_worker_changed():
    now = [0.0]
    board = WatchBoard(clock=lambda: now[0])
    for moment in range(10):
        now[0] = float(moment)
        board.post(beat(0, moment, world_size=2))
        board.post(beat(1, min(moment, 3), world_size=2))
    assert board.read(5.0) == ([], None), "rank 0 goes on"
    for moment in range(10, 20):
        now[0] = float(moment)
        board.post(beat(0, 9, world_size=2))
        board.post(beat(1, 3, world_size=2))
    _, stall = board.read(5.0)
    assert [one.rank for one in stall.behind] == [1]
    assert stall.seconds == 10.0


def test_the_board_forgets_the_workers_of_an_earlier_start():
    board = WatchBoard(clock=lambda: 0.0)
    for rank in range(3):
        board.post(beat(rank, 50))
    for rank in range(2):
        board.post(beat(rank, 0, "start", world_size=2))
    _, stall = board.read(0.0)
    assert [one.rank for one in stall.behind] == [0, 1]
    assert stall.waiting == 0


def test_spikes_are_read_once():
    board = WatchBoard()
    board.warn("spike", "text")
    assert board.read(1.0) == ([("spike", "text")], None)
    assert board.read(1.0) == ([], None)


def test_a_heartbeat_tells_where_the_worker_is_and_ends():
    told = []
    before = threading.active_count()
    settings = {"rank": 1, "world_size": 2, "node": "n", "interval_s": 0.01}
    with Heartbeat(told.append, **settings) as heart:
        heart.at(5, "forward")
        heart.at(5, "reduce")
        deadline = time.monotonic() + 10
        while not (told and told[-1].phase == "reduce") and time.monotonic() < deadline:
            time.sleep(0.01)
    assert threading.active_count() == before
    last = told[-1]
    assert (last.rank, last.world_size, last.node) == (1, 2, "n")
    assert (last.step, last.phase, last.count) == (5, "reduce", 2)


def test_a_phase_costs_a_step_next_to_nothing():
    heart = Heartbeat(lambda beat: None, rank=0, world_size=1, node="n")
    started = time.perf_counter()
    for step in range(1000):
        heart.at(step, "forward")
    assert (time.perf_counter() - started) / 1000 < 1e-3


def test_a_warning_is_written_down(tmp_path, capsys):
    warnings, path = [], tmp_path / "train" / "warnings.jsonl"
    for step in (1, 2):
        record = {"warning": "loss spike", "step": step, "text": f"[of step {step}]"}
        watch._warn(record, path, warnings)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert warnings == ["[of step 1]", "[of step 2]"]
    assert "warning loss spike: [of step 1]" in capsys.readouterr().err
