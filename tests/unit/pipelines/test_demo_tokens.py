"""The image encoder of toy worlds: its tokens name images, have unit size, and repeat."""

import torch

from cil.models.condition_encoders import ImageEncoder
from pipelines.demo_data import main as make_videos
from pipelines.demo_tokens import first_frames, main


def test_tokens_name_images_and_have_unit_size(tmp_path, capsys):
    videos = tmp_path / "videos"
    small = ["--num-videos", "40", "--num-frames", "1", "--size", "16", "--num-held-out", "0"]
    assert make_videos(["--out", str(videos), *small]) == 0
    command = ["--videos", str(videos), "--width", "16"]
    for name in ("one", "two"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    one, two = (ImageEncoder.from_folder(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    tokens = torch.cat([one.encode(frame) for frame in first_frames(videos)])
    assert tokens.shape == (40, 16)
    assert 0.95 < tokens.square().mean().sqrt() < 1.05
    assert tokens.mean(0).square().sum() < 0.05 * tokens.square().sum(1).mean()
    distance = torch.cdist(tokens, tokens) + 1e9 * torch.eye(40)
    assert distance.min() > 0.3  # no two images have the same token
    assert main(["--videos", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "there are no .mp4 files" in capsys.readouterr().err
