"""dynamicrafter and videocrafter1 from videos to a trained step, a model folder and a video."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cil.models
from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.models.checkpoint_files import read_checkpoint, write_checkpoint
from cil.models.condition_encoders import TextEncoder
from cil.models.lvdm_import import original_lvdm
from pipelines.__main__ import _main
from pipelines.batches import BatchReader
from pipelines.check_conditions import check_conditions
from pipelines.config import validate_config
from pipelines.dataset import open_dataset, open_training_data
from pipelines.dropout_seed import seeded_dropout
from pipelines.engine import choose_trainable
from pipelines.export import _write_original
from pipelines.first_batch import step_inputs
from pipelines.model_folder import build_model, write_model
from pipelines.pretrained_parts import model_identity, with_pretrained_parts
from pipelines.shards import load_manifest, moments_of, read_moments
from pipelines.train_step import TrainStep
from pipelines.verify import verify

PRESETS = {"dynamicrafter": "paper-dynamicrafter", "videocrafter1": "paper-videocrafter"}


def settings(family, folder, videos, output, **train):
    return {
        "data": {"videos": str(videos), "num_frames": 4, "fps": 8, "height": 32, "width": 32},
        "model": {"family": family, "pretrained": str(folder)},
        "time_noise": {"preset": PRESETS[family]},
        "train": {
            "global_batch_size": 4,
            "num_steps": 2,
            "warmup_steps": 0,
            "condition_dropout": 0.05,
            **train,
        },
        "validate": {"held_out_fraction": 0},
        "output": {"dir": str(output)},
    }


class Engine:
    """What ``TrainStep.loss`` uses of an engine."""

    device = torch.device("cpu")

    def __init__(self, network):
        self.network = network

    def __call__(self, *given, **named):
        return self.network(*given, **named)


@pytest.fixture(scope="module", params=list(PRESETS))
def run(request, toy_lvdm, run_encode, noise, tmp_path_factory):
    """A data set of two videos, encoded by the parts of a toy model."""
    family, root = request.param, tmp_path_factory.mktemp("lvdm_run")
    (root / "videos").mkdir()
    for seed in range(2):
        noise(root / "videos" / f"{seed}.mp4", seed)
    raw = settings(family, toy_lvdm[family], root / "videos", root / "run")
    config = with_pretrained_parts(validate_config(raw, source="the tests"))
    run_encode(config)
    return config


@pytest.fixture
def step_of(run):
    """The loss and gradient of a step, by the functions that training calls."""
    reader = open_dataset(run)

    def make(step, *, config=run, checkpointing=False, train=True):
        model = build_model(config, reader)
        choose_trainable(config.train, model)
        model.network.train(train).gradient_checkpointing = checkpointing
        batches = BatchReader({reader.bucket: reader}, global_batch_size=4, seed=config.seed)
        take = TrainStep(config, model, batches, Engine(model.network), world_size=1)
        result = take.loss(batches.batch(step).part(0, 2), step)
        result.loss.backward()
        found = {n: p.grad for n, p in model.network.named_parameters() if p.grad is not None}
        return result, found

    return make


def test_the_data_set_holds_what_the_family_needs(run):
    reader, folder = open_dataset(run), run.model.pretrained
    assert (run.condition.image_tokens, run.condition.text_layer) == ("hidden", "penultimate")
    clip = reader.clip(0)
    assert clip.image_embeds.shape == (5, 32)
    assert clip.text_embeds.shape == (77, 32)
    null = reader.null_condition()
    text = TextEncoder.from_folder(folder, layer="penultimate")
    assert torch.equal(null.text_embeds, text.encode("").tokens)
    own = cil.models.load(run.model.family, folder).null_condition
    assert torch.equal(null.image_embeds, own.image_embeds)


def test_an_older_data_set_gets_its_null_condition(run, run_encode):
    reader = open_dataset(run)
    path = Path(run.output.dir) / "dataset" / "null_condition.safetensors"
    manifest = path.parent / "manifest.json"
    before = load_file(path)
    stated = manifest.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"null_condition\.safetensors is missing; run encode"):
        reader.null_condition()
    raw = json.loads(stated)
    assert raw.pop("null_condition")
    manifest.write_text(json.dumps(raw))
    assert open_dataset(run).null_condition() is None
    assert run_encode(run).reused
    after = load_file(path)
    assert {n: v.tolist() for n, v in after.items()} == {n: v.tolist() for n, v in before.items()}
    assert manifest.read_bytes() == stated


def test_a_null_condition_that_changed_is_found_and_restored(run, run_encode, tmp_path):
    dataset = Path(run.output.dir) / "dataset"
    path = dataset / "null_condition.safetensors"
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    sums = rf"its sha256 is {hashlib.sha256(damaged).hexdigest()}, the manifest states "
    with pytest.raises(DataError, match=sums + hashlib.sha256(before).hexdigest()):
        open_dataset(run).null_condition()
    (fault,) = verify(str(dataset), tmp_path).outputs["faults"]
    assert fault.startswith("null_condition.safetensors: ")
    assert "its sha256 is" in fault
    assert run_encode(run).reused
    assert path.read_bytes() == before
    assert verify(str(dataset), tmp_path).outputs["faults"] == []


def test_a_random_conditioning_frame_needs_a_model_that_sees_no_tokens(run):
    """The tokens of a data set are those of the first frame."""
    random = replace(run, train=replace(run.train, conditioning_frame="random"))
    with pytest.raises(ConfigError, match="image tokens of the first frame only"):
        check_conditions(random, open_training_data(random))
    check_conditions(run, open_training_data(run))
    if run.model.family == "dynamicrafter":
        noise = replace(random, model=replace(run.model, image_token_replacement=1.0))
        check_conditions(noise, open_training_data(noise))


def test_a_step_with_dropout_is_a_function_of_its_number(step_of):
    torch.manual_seed(1)
    first, gradient = step_of(0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, same = step_of(0, checkpointing=True)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert torch.equal(first.per_sample, again.per_sample)
    assert sorted(gradient) == sorted(same)
    for name, value in gradient.items():
        torch.testing.assert_close(same[name], value, rtol=1e-4, atol=1e-6)
    without, _ = step_of(0, train=False)
    assert not torch.equal(first.per_sample, without.per_sample), "dropout is on in training"
    assert torch.isfinite(first.loss)


def test_seeds_of_dropout_differ_by_clip_and_step():
    def draw(**changed):
        with seeded_dropout(**{"seed": 1, "sample_id": 2, "step": 3, "device": "cpu", **changed}):
            return torch.rand(4)

    drawn = [draw(), draw(seed=2), draw(sample_id=3), draw(step=4)]
    assert torch.equal(draw(), drawn[0])
    assert len({tuple(value.tolist()) for value in drawn}) == 4


@pytest.mark.parametrize("trainable", ["temporal", "lora"])
def test_parts_of_the_network_are_trained(run, step_of, trainable):
    config = replace(run, train=replace(run.train, trainable=trainable))
    _, gradient = step_of(0, config=config)
    if trainable == "lora":
        assert all("lora_" in name for name in gradient)
        assert any("to_v.lora_B" in name for name in gradient)
    else:
        assert all("temopral_conv" in n or "init_attn" in n or ".2." in n for n in gradient)


def test_noise_goes_where_the_family_has_it(run):
    reader = open_dataset(run)
    model = build_model(run, reader)
    batches = BatchReader({reader.bucket: reader}, global_batch_size=4, seed=run.seed)
    seen = step_inputs(run, model, batches.batch(0), step=0).inputs
    frames = seen.conditioning_latents
    per_frame = not torch.equal(frames[:, 0], frames[:, 1])
    assert per_frame == (run.model.family == "dynamicrafter")
    assert seen.tokens.shape == (4, 64 if run.model.family == "dynamicrafter" else 16, 32)
    assert seen.tokens.std() > 0.5


def test_a_trained_model_folder_samples(run, tmp_path):
    model = build_model(run, open_dataset(run))
    names = choose_trainable(run.train, model)
    weights = {n: v + 0.01 for n, v in model.network.state_dict().items() if n in names}
    write_model(model, tmp_path / "model", weights)
    found = cil.models.load(run.model.family, tmp_path / "model")
    for name, value in weights.items():
        assert torch.equal(found.network.state_dict()[name], value), name
    dataset = run.output.dir + "/dataset"
    shards = [entry.name for entry in load_manifest(dataset).entries()]
    total = moments_of({name: read_moments(dataset, name) for name in shards})
    statistics = AnalyticInit.from_moments(total, {}).scaled(found.first_stage.scaling_factor)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    frames = generate(found, image, seed=1, start_time=0.94, analytic_init=statistics, num_steps=2)
    assert frames.shape == (1, 4, 32, 32, 3)
    assert float(frames.float().std()) > 1
    assert json.loads((tmp_path / "model" / "model.json").read_text())["num_frames"] == 4


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("videocrafter1", {"time_noise": {"preset": "mild"}}, "target must be tokens"),
        ("videocrafter1", {"train": {"condition_dropout": 0.5}}, "at most 1/3, got 0.5"),
        ("dynamicrafter", {"time_noise": {"preset": "paper-videocrafter"}}, "set one of them"),
        ("dynamicrafter", {"model": {"p_mean": 1.0}}, "model.p_mean is not a setting"),
    ],
)
def test_settings_that_do_not_fit_the_family(family, change, said, tmp_path):
    raw = settings(family, tmp_path, tmp_path, tmp_path)
    merged = {name: {**raw.get(name, {}), **values} for name, values in change.items()}
    with pytest.raises(ConfigError, match=said):
        validate_config({**raw, **merged}, source="the tests")


def test_a_folder_without_text_is_refused(toy_lvdm, tmp_path):
    folder = shutil.copytree(toy_lvdm["dynamicrafter"], tmp_path / "copy")
    raw = settings("dynamicrafter", folder, tmp_path, tmp_path)
    config = validate_config(raw, source="the tests")
    shutil.rmtree(folder / "text_encoder")
    assert with_pretrained_parts(config).condition.text_encoder is None
    (folder / "null_condition.safetensors").unlink()
    with pytest.raises(ConfigError, match="neither text_encoder/ nor null_condition"):
        with_pretrained_parts(config)


def test_the_projector_is_part_of_what_training_begins_with(toy_lvdm, tmp_path):
    folder = shutil.copytree(toy_lvdm["dynamicrafter"], tmp_path / "copy")

    def identity(place):
        raw = settings("dynamicrafter", place, tmp_path, tmp_path)
        return model_identity(validate_config(raw, source="the tests"))["pretrained"]

    path = folder / "image_projector" / "diffusion_pytorch_model.safetensors"
    assert identity(folder) == identity(toy_lvdm["dynamicrafter"])
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    weights = {name: value + 1 for name, value in load_file(path).items()}
    save_file(weights, other / path.relative_to(folder))
    assert identity(other) != identity(folder)


def test_a_checkpoint_is_imported_by_the_command_line(toy_lvdm, tmp_path, capsys):
    family = "videocrafter1"
    toy = toy_lvdm[family]
    write_checkpoint(tmp_path / "model.safetensors", original_lvdm(toy))
    network = json.loads((toy / "unet" / "config.json").read_text())
    projector = json.loads((toy / "image_projector" / "config.json").read_text())
    sizes = {"num_frames": 4, "height": 32, "width": 32, "downsampling": 4}
    own = tmp_path / "toy.yaml"
    own.write_text(json.dumps({**network, "projector": projector, **sizes}))
    words = ["import", family, str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out")]
    more = ["--tokenizer", str(toy / "tokenizer"), "--settings", str(own), "--json"]
    assert _main([*words, *more]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["import"]
    assert report["outputs"]["model"] == str(tmp_path / "out")
    assert cil.models.load(family, tmp_path / "out").config.num_frames == 4
    assert _main([*words, *more]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "out", "toy.yaml"]


def test_adapters_are_merged_into_the_original_layout(run, tmp_path):
    config = replace(run, train=replace(run.train, trainable="lora", lora_rank=2))
    model = build_model(config, open_dataset(run))
    names = choose_trainable(config.train, model)
    adapters = {n: v + 0.1 for n, v in model.network.state_dict().items() if n in names}
    before = {n: v.clone() for n, v in original_lvdm(Path(run.model.pretrained)).items()}
    _write_original(model, tmp_path / "out.safetensors", adapters)
    found = read_checkpoint(tmp_path / "out.safetensors")
    assert sorted(found) == sorted(before)
    changed = {name for name, value in found.items() if not torch.equal(value, before[name])}
    ends = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight", "_ip.weight")
    assert changed == {
        name
        for name in before
        if name.startswith("model.diffusion_model.") and ".attn" in name and name.endswith(ends)
    }
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
