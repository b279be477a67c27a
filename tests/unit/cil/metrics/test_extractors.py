"""Video networks and flow from TorchScript files that the tests make."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cil.errors import ConfigError, DataError
from cil.metrics.extractors import PREPROCESSING, VideoNetwork, find_video_network
from cil.metrics.motion import motion_score
from cil.metrics.motion_judgement import dynamic_degree
from cil.metrics.raft import RAFTFlow


class I3D(nn.Module):
    """Signature and width of the published file: a mean colour through a fixed matrix."""

    def __init__(self, width: int = 400):
        super().__init__()
        self.head = nn.Linear(3, width)

    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        if rescale:
            x = x / 127.5 - 1
        return self.head(x.mean(dim=[2, 3, 4]))


class Plain(nn.Module):
    """Mean, largest value and last frame's mean: enough to see what came in."""

    def forward(self, x):
        tops = torch.stack([x.amax(dim=[1, 2, 3, 4]), x[:, 0].mean(dim=[1, 2, 3])], dim=1)
        return torch.cat([tops, x[:, :, -1].mean(dim=[2, 3])], dim=1)


class Broken(nn.Module):
    """Gives what a test names."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        rows = x.mean(dim=[3, 4]).flatten(1)
        if self.kind == "nan":
            return rows * float("nan")
        if self.kind == "map":
            return x
        if self.kind == "constant":
            return rows * 0
        if self.kind == "batch":
            return rows - rows.mean(dim=0)
        return rows.reshape(7, -3)


class Classes(nn.Module):
    """Gives 101 columns, logits or probabilities."""

    def __init__(self, sums_to_one: bool):
        super().__init__()
        self.sums_to_one = sums_to_one

    def forward(self, x):
        rows = torch.cat([x.mean(dim=[3, 4]).flatten(1)] * 3, dim=1)[:, :101]
        return rows.softmax(dim=1) if self.sums_to_one else rows


@pytest.fixture
def saved(tmp_path):
    def save(module):
        path = tmp_path / "network.pt"
        torch.jit.script(module.eval()).save(str(path))
        return path

    return save


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("present", [True, False])
def test_the_example_of_the_documentation_runs(present, tmp_path, monkeypatch):
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "weights").mkdir()
    if present:
        torch.jit.script(I3D().eval()).save(str(tmp_path / "weights" / "i3d_torchscript.pt"))
    monkeypatch.chdir(tmp_path)
    names = {"real_videos": videos(5), "generated_videos": videos(5)[:, ::-1] // 2}
    exec(code, names)
    fvd = names["fvd"]
    assert (fvd.value is None) == (not present)
    assert fvd.absent is None if present else "does not exist" in fvd.absent
    assert not present or (fvd.value > 0 and len(fvd.extractor_sha256) == 64)


def videos(count=3, frames=16, side=32):
    return np.random.default_rng(0).integers(0, 256, (count, frames, side, side, 3), np.uint8)


def test_features_of_the_published_signature(saved):
    module = I3D()
    path = saved(module)
    network = VideoNetwork.from_file(path, "i3d")
    shown = videos()
    truth = module.head(torch.from_numpy(shown.mean(axis=(1, 2, 3)) / 127.5 - 1).float())
    np.testing.assert_allclose(network.features(shown), truth.detach(), rtol=1e-4, atol=1e-5)
    assert network.width == 400
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.preprocessing.name.startswith("i3d-stylegan-v")


def test_other_networks_see_plain_pixels_in_order(saved):
    shown = videos()
    rows = VideoNetwork.from_file(saved(Plain()), "features").features(shown)
    np.testing.assert_allclose(rows[:, 0], shown.max(axis=(1, 2, 3, 4)))
    np.testing.assert_allclose(rows[:, 1], shown[..., 0].mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(rows[:, 2:], shown[:, -1].mean(axis=(1, 2)), rtol=1e-5)


class TopRow(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :, 0, 0].mean(dim=2), x[:, :, 0, :, 0].mean(dim=2)], dim=1)


def test_rows_and_columns_keep_their_places(saved):
    shown = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 40, 3), np.uint8)
    rows = VideoNetwork.from_file(saved(TopRow()), "features").features(shown)
    np.testing.assert_allclose(rows[:, :3], shown[:, 0, 0].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows[:, 3:], shown[:, 0, :, 0].mean(axis=1), rtol=1e-5)


def test_videomae_is_given_squares_from_0_to_1(saved):
    class Told(nn.Module):
        def forward(self, x):
            shape = torch.tensor([x.shape[2], x.shape[3], x.shape[4]]).float() / 1000
            facts = torch.cat([x.amax(dim=[1, 2, 3, 4])[:, None], shape.repeat(len(x), 1)], dim=1)
            return torch.cat([facts, torch.zeros(len(x), 1404)], dim=1)

    network = VideoNetwork.from_file(saved(Told()), "videomae")
    rows = network.features(np.full((1, 16, 20, 30, 3), 51, np.uint8))
    np.testing.assert_allclose(rows[0, :4], [0.2, 0.016, 0.224, 0.224], rtol=1e-5)


def test_rows_do_not_depend_on_the_batch(saved):
    network = VideoNetwork.from_file(saved(I3D()), "i3d")
    shown = videos(5)
    alone = np.concatenate([network.features(shown[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(network.features(shown), alone, rtol=1e-5, atol=1e-6)


def test_class_probabilities_are_told_from_logits(saved):
    assert VideoNetwork.from_file(saved(Classes(True)), "c3d").width == 101
    with pytest.raises(DataError, match="must give probabilities"):
        VideoNetwork.from_file(saved(Classes(False)), "c3d")
    with pytest.raises(DataError, match="must give 101 columns, got 48"):
        VideoNetwork.from_file(saved(FortyEight()), "c3d")


class FortyEight(nn.Module):
    def forward(self, x):
        return x.mean(dim=[3, 4]).flatten(1)


@pytest.mark.parametrize(
    ("module", "kind", "complaint"),
    [
        (I3D(512), "i3d", "must give 400 columns, got 512"),
        (Plain(), "i3d", "cannot be run on"),
        (Broken("nan"), "features", "NaN or Inf"),
        (Broken("map"), "features", "one row per video"),
        (Broken("constant"), "features", "same row for different videos"),
        (Broken("batch"), "features", "another row for a video alone"),
        (Broken("crash"), "features", "cannot be run on"),
    ],
)
def test_the_wrong_network_is_refused(saved, module, kind, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        VideoNetwork.from_file(saved(module), kind)
    assert "\n" not in str(caught.value)


def test_what_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match="is no TorchScript file"):
        VideoNetwork.from_file(path, "i3d")
    torch.save(I3D().state_dict(), path)
    with pytest.raises(DataError, match="a file of weights alone does not do"):
        VideoNetwork.from_file(path, "i3d")
    with pytest.raises(ConfigError, match="there is no file"):
        VideoNetwork.from_file(tmp_path / "nothing.pt", "i3d")
    with pytest.raises(ConfigError, match="kind must be one of"):
        VideoNetwork.from_file(path, "inception")
    with pytest.raises(ConfigError, match="cannot use the device"):
        VideoNetwork.from_file(path, "i3d", device="tpu")


def test_a_missing_file_is_a_reason_and_a_wrong_one_an_error(tmp_path, saved):
    assert find_video_network(None, "i3d") == "no i3d file was given"
    gone = tmp_path / "gone.pt"
    assert find_video_network(gone, "c3d") == f"the c3d file {gone} does not exist"
    assert find_video_network(saved(I3D()), "i3d").width == 400
    with pytest.raises(DataError, match="another network"):
        find_video_network(saved(Plain()), "i3d")


@pytest.mark.parametrize(
    ("shown", "complaint"),
    [
        (videos().astype(np.float32), "uint8"),
        (videos()[0], "must be"),
        (videos(frames=9), "at least 10 frames, got 9"),
    ],
)
def test_what_are_no_videos_is_refused(saved, shown, complaint):
    with pytest.raises(DataError, match=complaint):
        VideoNetwork.from_file(saved(I3D()), "i3d").features(shown)


def test_a_fixed_length_is_kept(saved):
    with pytest.raises(DataError, match="takes 16 frames, got 17"):
        VideoNetwork.from_file(saved(Classes(True)), "c3d").features(videos(frames=17))


def test_each_preprocessing_has_its_own_name():
    assert all(":" in item.name for item in PREPROCESSING.values())
    differing = {
        (item.scale, item.side, item.num_frames, str(item.arguments)): item.name
        for item in PREPROCESSING.values()
    }
    assert len(set(differing.values())) == len(differing)


class ByPhase(nn.Module):
    """Finds one shift for the whole picture from the phase of its Fourier transform."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor

    def forward(self, early, late):
        one = torch.fft.fft2((early - early.mean()).mean(dim=1)[0])
        two = torch.fft.fft2((late - late.mean()).mean(dim=1)[0])
        cross = one.conj() * two
        peak = torch.fft.ifft2(cross / (cross.abs() + 1e-9)).real
        place = int(peak.argmax())
        height, width = peak.shape[0], peak.shape[1]
        dy, dx = place // width, place % width
        dy = dy - height if dy > height // 2 else dy
        dx = dx - width if dx > width // 2 else dx
        flow = torch.zeros(1, 2, height, width)
        flow[:, 0] = dx * self.factor
        flow[:, 1] = dy * self.factor
        return [flow * 0, flow]


def pan(dx, frames=3):
    wide = np.random.default_rng(1).integers(0, 256, (256, 400, 3), np.uint8)
    return np.stack([wide[:, 50 - dx * k : 370 - dx * k] for k in range(frames)])


def test_flow_from_a_file_measures_motion(saved):
    method = RAFTFlow.from_file(saved(ByPhase()))
    score = motion_score(pan(5), method=method)
    assert score.per_transition == pytest.approx([5, 5])
    assert score.consistent == pytest.approx(5)
    assert score.transitions[0].fastest == pytest.approx(5)
    moving = dynamic_degree(pan(7), fps=8, method=method)
    assert (moving.moves, moving.name) == (True, "dynamic_degree")


@pytest.mark.parametrize("height", [250, 256])
def test_flow_has_the_size_of_the_frame(saved, height):
    method = RAFTFlow.from_file(saved(ByPhase()), pixels="-1..1")
    frame = method.prepare(np.zeros((height, 301, 3), np.uint8))
    assert method.flow(frame, frame).shape == (*frame.shape[:2], 2)


class Places(nn.Module):
    def forward(self, early, late):
        down, across = (torch.arange(size).float() for size in early.shape[2:])
        return torch.stack(torch.meshgrid(across, down, indexing="xy"))[None]


def test_what_was_padded_is_cut_off():
    method = RAFTFlow(Places(), pixels="0..255", sha256="", source="places", device="cpu")
    flow = method.flow(*[np.zeros((10, 13, 3), np.uint8)] * 2)
    assert flow.shape == (10, 13, 2)
    assert flow[0, 0].tolist() == [0, 0]
    assert flow[9, 12].tolist() == [12, 9]


class NoFlow(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, early, late):
        if self.kind == "nan":
            return early[:, :2] * float("nan")
        if self.kind == "small":
            return late[:, :2, ::8, ::8]
        return early[:, :2]


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (ByPhase(-1.0), r"finds a flow of \(-6.0, 3.0\) px"),
        (ByPhase(2.0), "it is no flow network"),
        (NoFlow("same"), "it is no flow network"),
        (NoFlow("small"), "must give a flow"),
        (NoFlow("nan"), "NaN or Inf"),
        (Plain(), "cannot be run on two images"),
    ],
)
def test_what_finds_no_shift_is_refused(saved, module, complaint):
    with pytest.raises(DataError, match=complaint):
        RAFTFlow.from_file(saved(module))


def test_an_unknown_range_of_pixels_is_refused(saved):
    with pytest.raises(ConfigError, match="pixels must be one of"):
        RAFTFlow.from_file(saved(ByPhase()), pixels="0..1")
