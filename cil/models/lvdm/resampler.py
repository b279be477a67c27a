"""The image projector: vision tokens of the conditioning image in, context tokens out."""

import torch
from torch import Tensor, nn

from cil.errors import DataError

__all__ = ["Resampler"]


class _PerceiverAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, image: Tensor, latents: Tensor) -> Tensor:
        image, latents = self.norm1(image), self.norm2(latents)
        key, value = self.to_kv(torch.cat([image, latents], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens in (self.to_q(latents), key, value)
        )
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Resampler(nn.Module):
    """Turns image tokens into a fixed number of tokens by learnt queries that attend to them.

    Source: Ye et al. 2023, "IP-Adapter"; Alayrac et al. 2022, "Flamingo".
    """

    def __init__(
        self,
        *,
        dim: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 16,
        embedding_dim: int = 1280,
        output_dim: int = 1024,
        ff_mult: int = 4,
        video_length: int | None = None,
    ) -> None:
        """Make a projector.

        Args:
            dim: width of the queries.
            depth: layers.
            dim_head: width of a head.
            heads: heads; their joint width need not be ``dim``.
            num_queries: tokens for an image; for each frame where ``video_length`` is given.
            embedding_dim: width of the image tokens.
            output_dim: width of the context.
            ff_mult: width of the feed-forward layers over ``dim``.
            video_length: frames with tokens of their own; None if all frames share them.
        """
        super().__init__()
        num_tokens = num_queries * (video_length or 1)
        self.latents = nn.Parameter(torch.randn(1, num_tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _PerceiverAttention(dim, heads, dim_head),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, ff_mult * dim, bias=False),
                        nn.GELU(),
                        nn.Linear(ff_mult * dim, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, image_tokens: Tensor) -> Tensor:
        """Project.

        Args:
            image_tokens: (B, L, embedding_dim), before the encoder's last norm and projection.

        Returns:
            (B, num_queries * video_length, output_dim), frame by frame.

        Raises:
            DataError: another width.
        """
        if image_tokens.ndim != 3 or image_tokens.shape[2] != self.proj_in.in_features:
            raise DataError(
                f"image tokens must be (B, L, {self.proj_in.in_features}), got "
                f"{tuple(image_tokens.shape)}"
            )
        image = self.proj_in(image_tokens)
        latents = self.latents.repeat(image.shape[0], 1, 1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = latents + attention(image, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))  # type: ignore[no-any-return]
