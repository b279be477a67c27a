import numpy as np
import pytest
import torch

from cil.errors import ConfigError, DataError
from cil.metrics.frechet import frechet_distance


class Means(torch.nn.Module):
    """Mean and spread of each colour: six features of a video."""

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        flat = videos.flatten(2)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)


class Flat(torch.nn.Module):
    """The same for every video."""

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(videos), 4)


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


def test_features_of_a_file_become_distances(
    network, held_out_config, change, two_arms, evaluate_here
):
    config = change(held_out_config, evaluate={"features": str(network), "videos": "npz"})
    folder = network.parent / "evaluate"
    found = evaluate_here(config, two_arms[:1], folder)
    by_hand = Means()

    def of(paths):
        frames = np.stack([np.load(folder / path)["frames"] for path in paths])
        return by_hand(torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float()).numpy()

    real, made = (of([row[name] for row in found.rows]) for name in ("video_real", "video"))
    with np.load(folder / "features.npz") as file:
        assert sorted(file.files) == ["base|0.94|1/features", "real/features"]
        np.testing.assert_allclose(file["real/features"], real, rtol=1e-5)
    distance = found.metrics["results"][0]["measures"]["features_frechet"]
    assert distance["value"] == pytest.approx(frechet_distance(real, made), rel=1e-4)
    assert len(distance["extractor_sha256"]) == 64
    assert distance["preprocessing"] == "plain: 0..255, own size"
    torch.jit.script(torch.nn.Identity()).save(str(network))
    with pytest.raises(DataError, match="another network"):
        evaluate_here(config, two_arms[:1], folder)  # another hash: nothing is reused


def test_a_network_that_tells_nothing_is_refused(
    network, held_out_config, change, two_arms, evaluate_here
):
    torch.jit.script(Flat()).save(str(network))
    config = change(held_out_config, evaluate={"features": str(network)})
    with pytest.raises(DataError, match="same row for different videos"):
        evaluate_here(config, two_arms[:1], network.parent / "evaluate")


def test_a_file_that_is_not_there_is_a_reason_and_no_number(
    held_out_config, change, finished, tmp_path
):
    from pipelines.evaluate.extractors import extractor_hashes, reasons_for_absence

    settings = change(held_out_config, evaluate={"i3d": str(tmp_path / "i3d.pt")}).evaluate
    assert extractor_hashes(settings) == {}
    assert reasons_for_absence(settings)["i3d"] == f"evaluate.i3d: there is no {tmp_path}/i3d.pt"
    assert finished.metrics["results"][0]["measures"]["fvd"]["value"] is None


def test_clips_that_are_too_short_are_refused(
    network, held_out_config, change, two_arms, evaluate_here
):
    config = change(held_out_config, evaluate={"i3d": str(network)})
    with pytest.raises(ConfigError, match="takes at least 10 frames, the clips have 8"):
        evaluate_here(config, two_arms[:1], network.parent / "evaluate")
