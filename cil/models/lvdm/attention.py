"""Transformers of the LVDM UNet: over the positions of a frame, over the frames of a position."""

from torch import Tensor, nn

from cil.models.lvdm.config import TEXT_TOKENS
from cil.models.lvdm.layers import as_clips, as_frames, zeroed

__all__ = ["SpatialTransformer", "TemporalTransformer"]

_GROUPS = 32
_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Attention of tokens to themselves, or to a context of text and, separately, image tokens."""

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        context_dim: int | None = None,
        to_image: bool = False,
    ) -> None:
        super().__init__()
        inner, source = heads * head_dim, dim if context_dim is None else context_dim
        self.heads, self.to_context = heads, context_dim is not None
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(source, inner, bias=False)
        self.to_v = nn.Linear(source, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(0.0))
        self.to_k_ip = nn.Linear(source, inner, bias=False) if to_image else None
        self.to_v_ip = nn.Linear(source, inner, bias=False) if to_image else None

    def forward(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, L, D).
            context: (B, 77 + image tokens, D'), where there is one.

        Returns:
            (B, L, D).
        """
        query = self._split(self.to_q(tokens))
        if not self.to_context:
            return self.to_out(self._attend(query, tokens, self.to_k, self.to_v))  # type: ignore[no-any-return]
        assert context is not None
        text, image = context[:, :TEXT_TOKENS], context[:, TEXT_TOKENS:]
        found = self._attend(query, text, self.to_k, self.to_v)
        if self.to_k_ip is not None and self.to_v_ip is not None and image.shape[1]:
            found = found + self._attend(query, image, self.to_k_ip, self.to_v_ip)
        return self.to_out(found)  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, source: Tensor, to_k: nn.Linear, to_v: nn.Linear) -> Tensor:
        key, value = self._split(to_k(source)), self._split(to_v(source))
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return found.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class _GEGLU(nn.Module):
    """Linear layer whose second half gates the first by the exact GELU."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention to itself, attention to the context (or to itself again), feed-forward."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, context_dim: int | None, *, to_image: bool
    ) -> None:
        super().__init__()
        self.attn1 = Attention(dim, heads, head_dim)
        self.ff = _FeedForward(dim)
        self.attn2 = Attention(dim, heads, head_dim, context_dim=context_dim, to_image=to_image)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens), None)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))  # type: ignore[no-any-return]


class SpatialTransformer(nn.Module):
    """Transformer over the positions of each frame, with the context of that frame."""

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        *,
        depth: int,
        context_dim: int,
        use_linear: bool,
        to_image: bool,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(_GROUPS, channels, eps=_NORM_EPS)
        self.proj_in = nn.Linear(channels, inner) if use_linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            _Block(inner, heads, head_dim, context_dim, to_image=to_image) for _ in range(depth)
        )
        self.proj_out = zeroed(
            nn.Linear(inner, channels) if use_linear else nn.Conv2d(inner, channels, 1)
        )

    def forward(self, frames: Tensor, context: Tensor) -> Tensor:
        """Transform frames.

        Args:
            frames: (B*F, C, H, W).
            context: (B*F, L, D).

        Returns:
            (B*F, C, H, W).
        """
        height, is_linear = frames.shape[2], isinstance(self.proj_in, nn.Linear)
        tokens = self.norm(frames)
        if not is_linear:
            tokens = self.proj_in(tokens)
        tokens = tokens.flatten(2).transpose(1, 2)
        if is_linear:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        if is_linear:
            tokens = self.proj_out(tokens)
        tokens = tokens.transpose(1, 2).unflatten(2, (height, -1))
        if not is_linear:
            tokens = self.proj_out(tokens)
        return frames + tokens  # type: ignore[no-any-return]


class TemporalTransformer(nn.Module):
    """Transformer over the frames of each position; it has no context."""

    def __init__(
        self, channels: int, heads: int, head_dim: int, *, depth: int, use_linear: bool
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(_GROUPS, channels, eps=_NORM_EPS)
        self.proj_in = nn.Linear(channels, inner) if use_linear else nn.Conv1d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            _Block(inner, heads, head_dim, None, to_image=False) for _ in range(depth)
        )
        self.proj_out = zeroed(
            nn.Linear(inner, channels) if use_linear else nn.Conv1d(inner, channels, 1)
        )

    def forward(self, frames: Tensor, batch: int) -> Tensor:
        """Transform frames (B*F, C, H, W) of ``batch`` clips."""
        is_linear = isinstance(self.proj_in, nn.Linear)
        clips = self.norm(as_clips(frames, batch))
        height, width = clips.shape[3:]
        rows = clips.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B*H*W, C, F)
        rows = self.proj_in(rows.transpose(1, 2)) if is_linear else self.proj_in(rows)
        tokens = rows if is_linear else rows.transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, None)
        if is_linear:
            rows = self.proj_out(tokens).transpose(1, 2)
        else:
            rows = self.proj_out(tokens.transpose(1, 2))
        clips = rows.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)
        return frames + as_frames(clips)
