"""Draw the figures of docs/method.md from the code they describe.

    python docs/figures.py

Needs matplotlib and the demo's sprites, no GPU; a few seconds. The files have the same bytes on
every run of one version of matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from cil import (
    AnalyticInit,
    EDMSchedule,
    LatentMoments,
    Stream,
    TimeNoise,
    TimeNoiseConfig,
    VPSchedule,
    jackknife,
    kl_curve,
    marginal_kl,
    rng,
)
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines.demo_sprites import draw_sprite, render

TIME_NOISE = ("mild", "paper-dynamicrafter", "paper-videocrafter", "paper-svd", "paper-svd-fixed")
SVD = EDMSchedule(p_mean=-1.2, p_std=1.2)
"""The released SVD recipe's training distribution."""
COLOURS = ("#33658a", "#f26419", "#86a873", "#758e4f", "#9d4edd", "#c1121f", "#6c757d")


def law_of(preset: str) -> TimeNoise:
    """Return a TimeNoise preset."""
    law = TimeNoise.preset(preset)
    if not isinstance(law, TimeNoise):
        raise TypeError(f"{preset} is a baseline")
    return law


def draw_densities() -> Figure:
    """p_t(sigma_cond) over t for each TimeNoise preset, with its quartiles, and mu(t) below."""
    figure = Figure(figsize=(15, 5.6))
    axes = figure.subplots(2, len(TIME_NOISE), height_ratios=(3, 1), sharex=True)
    t = torch.linspace(0, 1, 121, dtype=torch.float64)
    for (top, bottom), preset in zip(axes.T, TIME_NOISE, strict=True):
        law = law_of(preset)
        sigma_cond = law.beta_m * torch.linspace(0.002, 0.998, 121, dtype=torch.float64)
        density = law.pdf(sigma_cond[:, None], t[None, :])
        relative = density / density.amax(dim=0)
        extent = (0.0, 1.0, 0.0, law.beta_m)
        norm = PowerNorm(0.6)
        top.imshow(
            relative.numpy(), origin="lower", aspect="auto", extent=extent, cmap="Blues", norm=norm
        )
        for q, style in ((0.25, ":"), (0.5, "-"), (0.75, ":")):
            quantile = law.quantile(torch.full_like(t, q), t)
            top.plot(t, quantile, color=COLOURS[1], linestyle=style, linewidth=1.3)
        top.set_title(f"{preset}\nbeta_m {law.beta_m:g}, a {law.a:g}, mu_max {law.mu_max:g}")
        bottom.plot(t, law.mu(t), color=COLOURS[0])
        bottom.set_ylim(-4.5, 4.5)
        bottom.set_xlabel(
            {"index": "t = timestep / 1000", "rank": "t = rank of sigma"}.get(
                law.time_map, "t = sigma / 700"
            )
        )
        if law.time_map == "sigma":
            reach = float(SVD.level(torch.tensor(0.999, dtype=torch.float64))) / 700.0
            for axis in (top, bottom):
                axis.axvspan(reach, 1.0, color="white", alpha=0.75)
            top.text(
                0.5,
                0.5,
                "99.9 % of training is\nleft of here",
                transform=top.transAxes,
                ha="center",
            )
    axes[0, 0].set_ylabel("sigma_cond")
    axes[1, 0].set_ylabel("mu(t)")
    figure.suptitle(
        "Density of sigma_cond at each t (each column scaled to its maximum), quartiles"
    )
    return figure


def band(preset: str, schedule: EDMSchedule | VPSchedule, uniform: Tensor) -> np.ndarray:
    """Return the 10th, 50th, 90th percentile of sigma_cond over the rank of the video's noise."""
    draws = 2000
    normal = torch.special.ndtri((torch.arange(draws, dtype=torch.float64) + 0.5) / draws)
    unrelated = uniform[torch.arange(draws) * 7919 % len(uniform)]
    corruption = TimeNoiseConfig(preset=preset).build(schedule)  # type: ignore[arg-type]
    rows = []
    for u in uniform:
        level = schedule.level(u.expand(draws))
        sigma_cond = corruption.sigma_cond(level, normal, schedule.level(unrelated))
        rows.append(np.percentile(sigma_cond.numpy(), (10, 50, 90)))
    return np.stack(rows, axis=1)


def draw_levels() -> Figure:
    """Noise level of the condition against the rank of the video's, TimeNoise and baselines."""
    edm, vp = SVD, VPSchedule(zero_terminal_snr=True)
    groups = (
        ("our default and its controls", ("mild", "constant", "shuffled"), edm),
        ("practice elsewhere", ("lognormal", "paper-svd-baseline", "cdm"), edm),
        ("as published, EDM (SVD)", ("paper-svd", "paper-svd-fixed"), edm),
        ("as published, VP", ("paper-dynamicrafter", "paper-videocrafter"), vp),
    )
    uniform = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    figure = Figure(figsize=(15, 4))
    axes = figure.subplots(1, len(groups), sharey=True)
    for axis, (title, presets, schedule) in zip(axes, groups, strict=True):
        for preset, colour in zip(presets, COLOURS, strict=False):
            low, middle, high = band(preset, schedule, uniform)
            axis.plot(uniform, middle, color=colour, label=preset)
            axis.fill_between(uniform, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set_yscale("log")
        axis.set_ylim(1e-2, 2e3)
        axis.axhline(1.0, color="black", linewidth=0.6, linestyle="--")
        axis.set_title(title)
        axis.set_xlabel("share of training noise levels below the video's")
        axis.legend(loc="upper left", frameon=False, fontsize=8)
    axes[0].set_ylabel("sigma_cond (median, 10 to 90 %)")
    figure.suptitle("Noise on the condition; the dashed line is the size of the latents themselves")
    return figure


def demo_latents(num_clips: int = 384, num_frames: int = 8, size: int = 32) -> Tensor:
    """Encode clips of the demo's world with the demo's codec, (N, F, C, H, W), unit variance."""
    generator = np.random.default_rng(0)
    videos = []
    for _ in range(num_clips):
        sprite = draw_sprite(generator)
        frames = [render(sprite, size=size, time_s=index / 16) for index in range(num_frames)]
        videos.append(torch.from_numpy(np.stack(frames)))
    moments = PatchMoments(patch_size=4)
    for video in videos[:64]:
        moments.update(video)
    codec = PatchPCA.fit(moments, latent_channels=4)
    latents = torch.stack([codec.encode(video).mean for video in videos]).double()
    return latents / latents.square().mean().sqrt()


def draw_analytic_init() -> Figure:
    """Analytic-Init against the true noisy latents of the demo data, its gain, and clips needed."""
    latents = demo_latents()
    parts = [LatentMoments().update(part) for part in latents.split(16)]
    total = LatentMoments()
    for part in parts:
        total.merge(part)
    init, errors = AnalyticInit.from_moments(total), jackknife(parts)
    noise = rng.normal(
        latents.shape[1:],
        seed=0,
        sample_ids=range(len(latents)),
        stream=Stream.VIDEO_NOISE,
        step=0,
    ).double()
    figure = Figure(figsize=(15, 3.8))
    axes = figure.subplots(1, 4)
    position = tuple(
        int(i) for i in np.unravel_index(int(init.mean.abs().argmax()), init.mean.shape)
    )
    for axis, sigma in zip(axes, (2.0, 10.0), strict=False):
        noisy = latents + sigma * noise
        values = noisy[(slice(None), slice(None), position[1])].flatten().numpy()
        grid = np.linspace(-4, 4, 400) * (sigma**2 + 2) ** 0.5
        axis.hist(
            values, bins=80, density=True, color=COLOURS[0], alpha=0.35, label="noisy latents"
        )
        mean = init.mean[:, position[1]].flatten().numpy()
        std = (sigma**2 + init.variance) ** 0.5
        mixture = np.mean([np.exp(-0.5 * ((grid - m) / std) ** 2) for m in mean], axis=0) / (
            std * (2 * np.pi) ** 0.5
        )
        usual = np.exp(-0.5 * (grid / sigma) ** 2) / (sigma * (2 * np.pi) ** 0.5)
        axis.plot(grid, mixture, color=COLOURS[1], label="Analytic-Init")
        axis.plot(grid, usual, color="black", linestyle="--", label="N(0, sigma^2)")
        axis.set_title(f"start at sigma = {sigma:g}, channel {position[1]}")
        axis.set_xlabel("value of a latent")
    axes[0].legend(frameon=False, fontsize=8)
    sigmas = np.geomspace(0.5, 100, 40)
    for start, label, colour in (
        (init, "Analytic-Init", COLOURS[1]),
        (None, "N(0, sigma^2 I)", "black"),
    ):
        values = [marginal_kl(total, start, alpha=1.0, sigma=float(s)) for s in sigmas]
        axes[2].loglog(sigmas, values, color=colour, label=label)
    axes[2].set_title("KL from the noisy latents' Gaussian")
    axes[2].set_xlabel("sigma at the start")
    axes[2].set_ylabel("nats per element")
    axes[2].legend(frameon=False, fontsize=8)
    count, kl = np.array(kl_curve(parts, alpha=1.0, sigma=2.0)).T
    axes[3].plot(count, kl, color=COLOURS[0])
    axes[3].set_yscale("log")
    axes[3].set_title("KL of the first n clips' statistics")
    axes[3].set_xlabel("n clips")
    axes[3].set_ylabel("nats per element, sigma = 2")
    figure.suptitle(
        f"Analytic-Init on the demo's world: {total.count} clips, variance {total.variance:.3f} "
        f"+- {errors.variance:.3f}, mean +- {errors.mean:.3f} (jackknife)"
    )
    return figure


def main() -> None:
    """Write the three figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "cil", "svg.fonttype": "none", "font.size": 9})
    for name, draw in (
        ("time-noise", draw_densities),
        ("noise-levels", draw_levels),
        ("analytic-init", draw_analytic_init),
    ):
        figure = draw()
        figure.tight_layout()
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
