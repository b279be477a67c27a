import shutil

import numpy as np
import pytest

from cil.errors import ConfigError, DataError
from pipelines.evaluate.arms import parse_arms
from pipelines.evaluate.video_folder import check_videos, find_videos, read_video
from pipelines.video_io import write_gif, write_mp4


@pytest.fixture
def folder(finished, tmp_path):
    """The videos of the arm `base` at M = 1, as another program would leave them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for row in finished.rows[:8]:
        name = f"{row['clip_key']}-s{row['seed']}.npz"
        shutil.copy(finished.folder / row["video"], folder / name)
    return folder


@pytest.fixture
def arm(held_out_config):
    """Maker of the arm of a folder."""
    return lambda folder: parse_arms([f"theirs=videos:{folder}"], held_out_config)[0]


@pytest.fixture
def settings(held_out_config, change):
    return change(held_out_config, evaluate={"seeds_per_clip": 2, "videos": "none"})


def test_videos_are_measured_as_those_of_the_model(folder, arm, settings, finished, evaluate_here):
    found = evaluate_here(settings, [arm(folder)], folder.parent / "evaluate")
    kept = ("motion", "motion_consistent", "ssim", "histogram", "alignment_mse", "motion_real")
    for own, theirs in zip(finished.rows[:8], found.rows, strict=True):
        assert {name: own[name] for name in kept} == {name: theirs[name] for name in kept}
        assert (theirs["start_time"], theirs["analytic_init"]) == (None, None)
        assert theirs["video"] is None


def test_a_manifest_names_files_by_clip_or_image(folder, arm, finished):
    chosen = finished.chosen
    lines = ["file,image,seed"]
    for number, path in enumerate(sorted(folder.iterdir())):
        key, _, seed = path.stem.partition("-s")
        path.rename(folder / f"{number}.npz")
        lines.append(f"{number}.npz,{key}.png,{seed}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    found = find_videos(folder, chosen)
    assert list(found) == [(key, seed) for key in chosen.clips for seed in chosen.seeds]
    check_videos(arm(folder), chosen)
    (folder / "manifest.csv").write_text("file,clip_key\n../x.npz,a\n")
    with pytest.raises(ConfigError, match=r"names ../x.npz, which must be"):
        find_videos(folder, chosen)
    (folder / "manifest.csv").write_text("name,clip_key\n")
    with pytest.raises(ConfigError, match="must have the columns file and clip_key"):
        find_videos(folder, chosen)


def test_missing_and_double_videos_are_refused(folder, finished):
    chosen = finished.chosen
    key = chosen.clips[0]
    shutil.copy(folder / f"{key}-s0.npz", folder / f"{key}.npz")
    with pytest.raises(ConfigError, match="are both of clip"):
        find_videos(folder, chosen)
    (folder / f"{key}.npz").unlink()
    (folder / f"{key}-s1.npz").unlink()
    with pytest.raises(ConfigError, match=rf"no video for 1 of 8 pairs.*{key}-s1"):
        find_videos(folder, chosen)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (((7, 32, 32, 3), 8), "num_frames 7 where the clips have 8"),
        (((8, 32, 64, 3), 8), "width 64 where the clips have 32"),
        (((8, 32, 32, 3), 4), "fps 4 where the clips have 8"),
    ],
)
def test_videos_unlike_the_clips_are_refused_with_both_values(folder, arm, finished, like, message):
    shape, fps = like
    path = folder / f"{finished.chosen.clips[2]}-s0"
    path.with_suffix(".npz").unlink()
    write_mp4(path.with_suffix(".mp4"), np.zeros(shape, np.uint8), fps=fps)
    with pytest.raises(ConfigError, match=message):
        check_videos(arm(folder), finished.chosen)


def test_files_of_all_kinds_are_read(tmp_path):
    frames = np.zeros((8, 32, 48, 3), np.uint8)
    frames[:, :, :, 0] = 30 * np.arange(8)[:, None, None]
    write_mp4(tmp_path / "a.mp4", frames, fps=8)
    write_gif(tmp_path / "a.gif", frames, fps=8)
    np.savez(tmp_path / "a.npz", frames=frames / 255)
    for name in ("a.mp4", "a.gif", "a.npz"):
        found = read_video(tmp_path / name, fps=8)
        assert found.shape == frames.shape
        assert np.abs(found.astype(int) - frames).max() <= (0 if name == "a.npz" else 8), name
    np.savez(tmp_path / "wrong.npz", frames=frames / 100)
    with pytest.raises(DataError, match=r"must be in \[0, 1\]"):
        read_video(tmp_path / "wrong.npz", fps=8)
    (tmp_path / "torn.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError):
        read_video(tmp_path / "torn.mp4", fps=8)


def test_no_pickle_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="must hold an array named frames"):
        read_video(tmp_path / "a.npz", fps=8)


def test_nan_and_black_videos_are_flagged_and_in_no_mean(
    folder, arm, settings, evaluate_here, tmp_path
):
    nan, black, *_ = sorted(folder.iterdir())
    frames = np.load(nan)["frames"] / 255
    frames[3, 2, 2, 1] = np.nan
    np.savez(nan, frames=frames)
    np.savez(black, frames=np.zeros((8, 32, 32, 3), np.uint8))
    found = evaluate_here(settings, [arm(folder)], tmp_path / "evaluate")
    flagged = {f"{r['clip_key']}-s{r['seed']}": r for r in found.rows if r["flags"]}
    assert flagged[nan.stem]["flags"] == "not_finite"
    assert flagged[nan.stem]["motion"] is None
    assert "black" in flagged[black.stem]["flags"]
    (result,) = found.metrics["results"]
    assert result["flags"]["black"] == result["flags"]["not_finite"] == 1
    rest = {}
    for row in found.rows:
        if not set(row["flags"].split()) & {"black", "not_finite"}:
            rest.setdefault(row["clip_key"], []).append(row["motion"])
    motion = result["measures"]["motion"]
    assert motion["value"] == pytest.approx(np.mean([np.mean(v) for v in rest.values()]))
    assert "2 of 8 videos are black or not finite and not in it" in motion["warnings"]


def test_a_folder_that_is_not_there_is_refused(arm, tmp_path):
    with pytest.raises(ConfigError, match=r"arm theirs: .* is not a folder of videos"):
        arm(tmp_path / "nothing")
