"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

__all__ = ["EvaluateConfig"]

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Measuring videos sampled from clips; see docs/evaluation.md."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    clips: Literal["held_out", "all"] = "held_out"
    """Clips whose first frames are sampled from: those that are never trained on, or all of the
    bucket. Numbers on clips that were trained on say nothing about new images."""
    num_clips: Count | None = 64
    """Clips at most, in the order of the hashes of their keys; null takes all."""
    seeds_per_clip: Count = 1
    """Videos per clip, from the seeds seed, seed + 1, ..."""
    start_times: tuple[Annotated[float, Gt(0), Le(1)], ...] = ()
    """Start times M in (0, 1] that each model is sampled with; empty takes the model's own."""
    analytic_init: tuple[bool, ...] = ()
    """Whether sampling starts from the Analytic-Init Gaussian; both may be given. Empty takes the
    model's own."""
    num_steps: Count | None = None
    """Sampler steps; null takes the model's own."""
    reference: Literal["latents", "source"] = "latents"
    """What a real clip is: its stored latents through the first stage, so that the codec is not
    judged, or the frames of its source video. Its first frame is the conditioning image."""
    as_clips: bool = False
    """Tell models of published families the size, length and rate of the clips. Otherwise a model
    that is made for others is refused; one of the family tiny always is."""
    clips_per_unit: Count = 4
    """Clips that are worked on and committed together: what a restart repeats at most, per
    worker."""
    num_workers: Count = 2
    """Units that are worked on at the same time, each by one worker; it does not change results."""
    use_gpu: bool = False
    """One GPU per worker for networks and extractors; everything else is on the CPU."""
    max_retries: Annotated[int, Ge(0)] = 2
    """How often a unit is tried again when its worker process dies."""
    videos: Literal["mp4", "npz", "none"] = "mp4"
    """How videos are kept: as mp4 of at least 256 pixels, for people; as npz with the exact frames,
    for other programs; or not at all."""
    i3d: str | None = None
    """TorchScript file of the I3D network for FVD, KVD and FVD-infinity; null leaves them out."""
    videomae: str | None = None
    """TorchScript file of a VideoMAE network, for the same distances in its features."""
    features: str | None = None
    """TorchScript file of any other network from videos to features, for the same distances."""
    c3d: str | None = None
    """TorchScript file of the C3D classifier for the Inception Score."""
    raft: str | None = None
    """TorchScript file of RAFT for a second motion score beside that of DIS."""
    raft_pixels: Literal["0..255", "-1..1"] = "0..255"
    """Pixels that the RAFT file takes: those of RAFT's own code, or of torchvision's."""
    clip: str | None = None
    """Folder of a CLIP vision model for image alignment and temporal consistency."""
    dino: str | None = None
    """Folder of a DINO model for subject consistency."""
    inception_videos: Count | None = None
    """Videos that the Inception Score is of, at most; null takes all."""
    inception_splits: Count = 10
    """Parts of the videos that the Inception Score is averaged over."""
    bootstrap_samples: Annotated[int, Ge(100)] = 2000
    """Resamples of the clips for an interval."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Level of the intervals."""
