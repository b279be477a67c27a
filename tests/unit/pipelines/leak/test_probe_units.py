"""The probe of model folders: restart, independence of the division, and the sums against `cil`."""

import json
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import torch

from cil.errors import DataError
from cil.metrics.motion import motion_score
from pipelines.evaluate.arms import parse_arms
from pipelines.evaluate.clip_set import clip_places
from pipelines.leak import probe_units
from pipelines.leak.probe_units import measure, plan_units, probe_arms
from pipelines.validation_clips import held_out_clip


@pytest.fixture(scope="module")
def config(encoded_run):
    """The encoded run with some videos held out, and a probe at four ranks."""
    from dataclasses import replace

    config = encoded_run.config
    return replace(
        config,
        validate=replace(config.validate, held_out_fraction=0.6),
        leak=replace(
            config.leak,
            times=(0.7, 0.8, 0.9),
            motion_times=(0.8,),
            num_clips=5,
            clips_per_unit=2,
        ),
    )


@pytest.fixture(scope="module")
def keys(config):
    found = tuple(clip_places(config))[:5]
    assert len(found) == 5
    return found


@pytest.fixture(scope="module")
def arms(config, model_folder):
    return parse_arms([f"one={model_folder}", f"two={model_folder}"], config)


def run(config, arms, keys, folder, *, stop_after=None):
    """Probe in this process; returns the rows and the units that were worked on."""
    worked = []

    def map_rows(rows, work, *, settings, **_):
        for row in rows:
            if stop_after is not None and len(worked) == stop_after:
                raise KeyboardInterrupt
            worked.append(json.loads(row["unit"]))
            yield work({"unit": np.array([row["unit"]], dtype=object)}, **settings)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as session:
        patch.setattr(probe_units, "map_rows", map_rows)
        patch.setattr(probe_units, "ray_session", lambda *_, **__: nullcontext())
        rows, made = probe_arms(config, arms, keys, folder=folder, session=session)
    assert made == len(worked)
    return rows, worked


@pytest.fixture(scope="module")
def probed(config, arms, keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return folder, *run(config, arms, keys, folder)


def test_units_are_all_pairs_of_arm_chunk_and_time(probed, keys):
    _, rows, _ = probed
    assert {row["arm"] for row in rows} == {"one", "two"}
    for arm in ("one", "two"):
        for time in (0.7, 0.8, 0.9):
            own = [row for row in rows if (row["arm"], row["time"]) == (arm, time)]
            assert [key for row in own for key in row["keys"]] == list(keys)
            assert [len(row["keys"]) for row in own] == [2, 3]  # no clip is alone
            assert all(("one_step_motion" in row["sums"]) == (time == 0.8) for row in own)


def test_models_of_one_content_are_probed_once(probed):
    """Both arms are the same folder, so they share their units, and their numbers are the same."""
    _, rows, worked = probed
    assert len(worked) == 6
    by_arm = {
        arm: [{**row, "arm": ""} for row in rows if row["arm"] == arm] for arm in ("one", "two")
    }
    assert by_arm["one"] == by_arm["two"]


def test_what_is_finished_is_not_done_again(config, arms, keys, probed, tmp_path):
    _, rows, _ = probed
    with pytest.raises(KeyboardInterrupt):
        run(config, arms, keys, tmp_path, stop_after=4)
    again, worked = run(config, arms, keys, tmp_path)
    assert len(worked) == 2
    assert again == rows
    assert run(config, arms, keys, tmp_path) == (rows, [])


def test_a_damaged_row_is_made_again(config, arms, keys, probed, tmp_path):
    _, rows, _ = probed
    run(config, arms, keys, tmp_path)
    path = sorted((tmp_path / "probe").glob("*.json"))[0]
    path.write_text(path.read_text()[:-20])
    again, worked = run(config, arms, keys, tmp_path)
    assert (again, len(worked)) == (rows, 1)


def test_other_settings_are_other_units(config, arms, keys):
    from dataclasses import replace

    def names(changed, fingerprint="f"):
        return {unit.name for unit in plan_units(changed, arms, keys, fingerprint=fingerprint)}

    base = names(config)
    assert names(config) == base
    assert not names(config, "g") & base
    assert not names(replace(config, seed=1)) & base
    more = replace(config, leak=replace(config.leak, times=(0.7, 0.8, 0.9, 0.95)))
    assert base < names(more)  # one time more costs one time more
    motion = replace(config, leak=replace(config.leak, motion_times=(0.7,)))
    assert len(names(motion) & base) == len(base) // 3
    workers = replace(config, evaluate=replace(config.evaluate, num_workers=7))
    assert names(workers) == base


def test_sums_are_those_of_the_clips_themselves(config, keys, probed, tiny_model):
    """Motion transfer by its formula, from the model and the stored latents alone."""
    from cil.models import Condition
    from cil.rng import Stream, normal

    _, rows, _ = probed
    row = next(row for row in rows if row["time"] == 0.8)
    places = clip_places(config)
    scale = tiny_model.first_stage.scaling_factor
    sigma = torch.tensor([row["level"]])
    assert float(tiny_model.schedule.rank(sigma.double())) == pytest.approx(0.8, abs=1e-6)
    for number, key in enumerate(row["keys"]):
        clip = held_out_clip(places[key])
        clean = clip.stored.mean[None] * scale
        noise = normal(
            clean.shape[1:],
            seed=config.seed,
            sample_ids=[clip.sample_id],
            stream=Stream.VIDEO_NOISE,
            step=2_800_000,
        )
        condition = Condition(
            conditioning_latents=(clean[:, :1] * tiny_model.conditioning_scale / scale).expand_as(
                clean
            ),
            image_embeds=tiny_model.image_tokens(clip.stored.image_embeds[None]),
            fps=torch.tensor([clip.stored.record.fps]),
            motion_bucket_id=torch.tensor([float(tiny_model.config.motion_bucket_id)]),
            frame_stride=torch.tensor([clip.stored.record.source_fps / clip.stored.record.fps]),
            text_embeds=None,
            sigma_cond=torch.zeros(1),
        )
        with torch.no_grad():
            p = tiny_model.denoise(clean + sigma * noise, sigma, condition)
            still = clean[:, :1].expand_as(clean)
            p_static = tiny_model.denoise(still + sigma * noise, sigma, condition)
        motion = (clean - still).double()
        top, bottom = row["sums"]["motion_transfer_ratio"]
        assert bottom[number] == pytest.approx(float(motion.square().sum()), rel=1e-5)
        moved = float(((p - p_static).double() * motion).sum())
        assert top[number] == pytest.approx(moved, rel=1e-3, abs=1e-3 * bottom[number])
        error, count = row["sums"]["one_step_mse"]
        assert error[number] / count[number] == pytest.approx(
            float((p - clean).square().mean()), rel=1e-4
        )
        decoded = tiny_model.first_stage.decode((p / scale)[0])
        predicted, real = row["sums"]["one_step_motion"]
        assert predicted[number] == pytest.approx(
            motion_score(np.asarray(decoded)).consistent, rel=0.05, abs=0.05
        )
        shown = np.asarray(tiny_model.first_stage.decode(clip.stored.mean))
        assert real[number] == pytest.approx(motion_score(shown).consistent, rel=1e-6)


def test_a_network_that_gives_nan_is_refused_by_name(config, arms, keys, tiny_model):
    places = clip_places(config)
    unit = plan_units(config, arms, keys, fingerprint="f")[0]
    clips = [held_out_clip(places[key]) for key in unit.keys]

    class Broken:
        def __getattr__(self, name):
            return getattr(tiny_model, name)

        def denoise(self, noisy, level, condition):
            return tiny_model.denoise(noisy, level, condition) * float("nan")

    with pytest.raises(DataError, match=f"arm one at t 0.7 is not finite for clip {unit.keys[0]}"):
        measure(Broken(), clips, config, unit, device=torch.device("cpu"))
