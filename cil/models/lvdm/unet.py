"""The network: noisy clip, timestep and context in, prediction out, all (B, C, F, H, W)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cil.errors import DataError
from cil.models.lvdm.attention import SpatialTransformer, TemporalTransformer
from cil.models.lvdm.config import IMAGE_TOKENS_PER_FRAME, TEXT_TOKENS, LVDMConfig
from cil.models.lvdm.layers import (
    Downsample,
    GroupNorm32,
    ResBlock,
    Upsample,
    as_clips,
    as_frames,
    timestep_embedding,
    zeroed,
)

__all__ = ["LVDMUNet"]

_FIRST_ATTENTION_HEADS = 8
_DEFAULT_FPS = 16


class _Stage(nn.Sequential):
    """Modules one after another, each given what it takes besides the frames."""

    def forward(  # type: ignore[override]
        self, frames: Tensor, embedding: Tensor, context: Tensor, batch: int
    ) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                frames = module(frames, embedding, batch)
            elif isinstance(module, SpatialTransformer):
                frames = module(frames, context)
            elif isinstance(module, TemporalTransformer):
                frames = module(frames, batch)
            else:
                frames = module(frames)
        return frames


class LVDMUNet(nn.Module):
    """UNet over frames with layers over time between those over space.

    Source: He et al. 2022, "Latent Video Diffusion Models for High-Fidelity Long Video Generation";
        Xing et al. 2023, "DynamiCrafter"; Chen et al. 2023, "VideoCrafter1".
    """

    def __init__(self, config: LVDMConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed = _embedder(width, embedding)
        if config.fs_condition or config.fps_condition:
            self.fps_embedding = _embedder(width, embedding)
            if config.fs_condition:
                zeroed(self.fps_embedding[2])
        self.input_blocks = nn.ModuleList(
            [_Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))]
        )
        if config.addition_attention:
            self.init_attn = _Stage(
                TemporalTransformer(
                    width,
                    _FIRST_ATTENTION_HEADS,
                    config.heads(width)[1],
                    depth=config.transformer_depth,
                    use_linear=False,
                )
            )
        widths = [width]
        channels, factor, last_level = width, 1, len(config.channel_mult) - 1
        for level, multiple in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                stage = self._stage(channels, multiple * width, factor)
                channels = multiple * width
                self.input_blocks.append(stage)
                widths.append(channels)
            if level != last_level:
                self.input_blocks.append(_Stage(Downsample(channels)))
                widths.append(channels)
                factor *= 2
        self.middle_block = _Stage(
            self._res_block(channels, channels),
            *self._transformers(channels),
            self._res_block(channels, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(config.channel_mult))):
            for number in range(config.num_res_blocks + 1):
                stage = self._stage(channels + widths.pop(), multiple * width, factor)
                channels = multiple * width
                if level and number == config.num_res_blocks:
                    stage.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    def enable_gradient_checkpointing(self) -> None:
        """Keep what goes in and out of each stage only, and compute the rest again."""
        self.gradient_checkpointing = True

    def _res_block(self, channels: int, out_channels: int) -> ResBlock:
        return ResBlock(
            channels,
            4 * self.config.model_channels,
            self.config.dropout,
            out_channels,
            temporal_conv=self.config.temporal_conv,
        )

    def _stage(self, channels: int, out_channels: int, factor: int) -> _Stage:
        """Return a residual block, with transformers where this downsampling factor has them."""
        stage = _Stage(self._res_block(channels, out_channels))
        if factor in self.config.attention_resolutions:
            stage.extend(self._transformers(out_channels))
        return stage

    def _transformers(self, channels: int) -> list[nn.Module]:
        config, (heads, head_dim) = self.config, self.config.heads(channels)
        depth, use_linear = config.transformer_depth, config.use_linear
        made: list[nn.Module] = [
            SpatialTransformer(
                channels,
                heads,
                head_dim,
                depth=depth,
                context_dim=config.context_dim,
                use_linear=use_linear,
                to_image=config.image_cross_attention,
            )
        ]
        if config.temporal_attention:
            made.append(
                TemporalTransformer(channels, heads, head_dim, depth=depth, use_linear=use_linear)
            )
        return made

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        fs: Tensor | None = None,
        fps: Tensor | int | None = None,
        **ignored: Any,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            x: (B, in_channels, F, H, W) noisy latents, stacked with conditioning latents where the
                model has them. H and W must divide by 2 for each level but the first.
            timesteps: (B,) index of the noise level.
            context: (B, L, context_dim): 77 text tokens, then image tokens; 16 for each frame,
                frame by frame, or any number that all frames share.
            fs: (B,) frame stride, where the model is conditioned on it.
            fps: (B,) frames per second or one for all, where the model is conditioned on it.
            **ignored: what other models of the kind take.

        Returns:
            (B, out_channels, F, H, W).

        Raises:
            DataError: the shapes do not fit the model.
        """
        del ignored
        self._check(x, context)
        batch, num_frames, dtype = x.shape[0], x.shape[2], self.dtype
        embedding = self._embed(x, timesteps, fs, fps).repeat_interleave(num_frames, dim=0)
        tokens = self._context_of_frames(context, num_frames).to(dtype)
        hidden, kept = as_frames(x).to(dtype), []
        for number, stage in enumerate(self.input_blocks):
            hidden = self._run(stage, hidden, embedding, tokens, batch)
            if number == 0 and self.config.addition_attention:
                hidden = self._run(self.init_attn, hidden, embedding, tokens, batch)
            kept.append(hidden)
        hidden = self._run(self.middle_block, hidden, embedding, tokens, batch)
        for stage in self.output_blocks:
            joined = torch.cat([hidden, kept.pop()], dim=1)
            hidden = self._run(stage, joined, embedding, tokens, batch)
        return as_clips(self.out(hidden), batch).to(x.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.time_embed[0].weight.dtype  # type: ignore[return-value]

    def _check(self, x: Tensor, context: Tensor) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_channels:
            raise DataError(
                f"x must be (B, {config.in_channels}, F, H, W), got {tuple(x.shape)}; stack the "
                "conditioning latents behind the noisy ones if the model takes them"
            )
        step = 2 ** (len(config.channel_mult) - 1)
        if x.shape[3] % step or x.shape[4] % step:
            raise DataError(
                f"height and width of the latents must divide by {step}, got {tuple(x.shape[3:])}"
            )
        if context.ndim != 3 or context.shape[2] != config.context_dim:
            raise DataError(
                f"context must be (B, L, {config.context_dim}), got {tuple(context.shape)}"
            )

    def _embed(
        self, x: Tensor, timesteps: Tensor, fs: Tensor | None, fps: Tensor | int | None
    ) -> Tensor:
        """Return (B, 4 * model_channels)."""
        config, width = self.config, self.config.model_channels

        def sinusoids(values: Tensor) -> Tensor:
            made = timestep_embedding(values, width)
            # DynamiCrafter rounds them to the type of its input, VideoCrafter does not
            return (made.to(x.dtype) if config.fs_condition else made).to(self.dtype)

        embedding: Tensor = self.time_embed(sinusoids(timesteps))
        if config.fs_condition:
            given: Tensor | int = config.default_fs if fs is None else fs
        elif config.fps_condition:
            given = _DEFAULT_FPS if fps is None else fps
        else:
            return embedding
        if not isinstance(given, Tensor):
            given = torch.full_like(timesteps, given)
        return embedding + self.fps_embedding(sinusoids(given))  # type: ignore[no-any-return]

    def _context_of_frames(self, context: Tensor, num_frames: int) -> Tensor:
        """(B, L, D) to (B*F, L', D): what each frame attends to."""
        own = TEXT_TOKENS + IMAGE_TOKENS_PER_FRAME * num_frames
        if self.config.fps_condition or context.shape[1] != own:
            return context.repeat_interleave(num_frames, dim=0)
        text = context[:, :TEXT_TOKENS].repeat_interleave(num_frames, dim=0)
        image = context[:, TEXT_TOKENS:].reshape(text.shape[0], -1, context.shape[2])
        return torch.cat([text, image], dim=1)

    def _run(self, stage: nn.Module, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return stage(*inputs)  # type: ignore[no-any-return]


def _embedder(width: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
