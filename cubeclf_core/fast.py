"""The quickest way that a machine has to classify with a vision transformer's weights.

It computes what `cubeclf_core.vit` does, where nothing is trained, and differs in four ways:

- Where there are units for it, weights and tokens are bfloat16. Raw counts have more digits than
  that: they are normalised before, and what pools the tokens and follows is float32 again.
- Patches are cut out and multiplied by a matrix: the convolution that they stand for is slow.
- Tokens are filled up to a multiple of 32, which nothing attends to: attention on CPUs is faster
  then.
- timm is not imported, which takes seconds.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.checkpoint import Header, load_checkpoint
from cubeclf_core.errors import CheckpointError
from cubeclf_core.heads import Head, HeadConfig
from cubeclf_core.network_configs import read_backbone_config
from cubeclf_core.normalise import match_channels, unit
from cubeclf_core.pooling import PoolsTokens, make_projection
from cubeclf_core.vit_config import SIZES, Vit3dConfig

_MULTIPLE = 32  # tokens
_AT_A_TIME = 16  # cuboids on a CPU: the memory of more is given back each time, and zeroed anew
_UNITS = ("amx_bf16", "avx512_bf16", "amx_int8", "avx512_vnni")
_EPSILON = 1e-6  # of timm's normalisations


def fastest() -> tuple[torch.device, torch.dtype]:
    """Say where and in which precision this machine is fastest."""
    if torch.cuda.is_available():
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.device("cuda"), torch.bfloat16 if half else torch.float32
    half = any("bf16" in name for name in cpu_units())
    return torch.device("cpu"), torch.bfloat16 if half else torch.float32


def cpu_units() -> list[str]:
    """Name what the processor has for bfloat16 and for small integers, as Linux calls it."""
    has = torch.cpu.get_capabilities()
    return [name for name in _UNITS if has.get(name)]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self._heads = heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, gains: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = _Attention(width, heads)
        self.ls1 = _Gain(width) if gains else nn.Identity()
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = _Mlp(width)
        self.ls2 = _Gain(width) if gains else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), mask))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class _PatchEmbed(nn.Module):
    """Holds the weights of the convolution that is done as a product of matrices."""

    def __init__(self, config: Vit3dConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.channels, width, config.patch_shape, config.patch_shape)


class FastVit(PoolsTokens, nn.Module):
    """The network of `Vit3d`, with its names of weights, from raw counts to tokens.

    Parameters
    ----------
    config
        The network.
    """

    cls_token: nn.Parameter
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter

    def __init__(self, config: Vit3dConfig) -> None:
        super().__init__()
        self.config = config
        width, depth, heads = SIZES[config.size]
        n_patches, n_registers = math.prod(config.grid), config.register_tokens
        self.patch_embed = _PatchEmbed(config, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, n_registers, width)) if n_registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, n_patches, width))
        gains = config.layer_scale is not None
        self.blocks = nn.ModuleList(_Block(width, heads, gains) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.projection = make_projection(3 * width, config.projection)

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b token width"]:
        """Tokens of raw counts: that of the class, then those of patches, float32."""
        n_seen = 1 + self.pos_embed.shape[1]
        n = n_seen + self.config.register_tokens
        filled = n if cuboids.is_cuda else -(-n // _MULTIPLE) * _MULTIPLE
        tokens = self._embedded(cuboids, filled)
        mask = None
        if filled > n:
            mask = tokens.new_zeros(1, 1, 1, filled)
            mask[..., n:] = -torch.inf
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.norm(tokens[:, :n_seen].float())  # type: ignore[no-any-return]

    def _embedded(self, cuboids: Tensor, filled: int) -> Float[Tensor, "b filled width"]:
        """Tokens that the blocks get: class, patches, registers, and zeros."""
        convolution = self.patch_embed.proj
        kernel = convolution.weight.flatten(1)
        assert convolution.bias is not None
        patches = F.linear(self._patches(_normalised(cuboids), kernel.dtype), kernel)
        n_seen = 1 + patches.shape[1]
        tokens = kernel.new_zeros(len(cuboids), filled, kernel.shape[0])
        tokens[:, :1] = self.cls_token
        torch.add(patches, self.pos_embed + convolution.bias, out=tokens[:, 1:n_seen])
        if self.reg_token is not None:
            tokens[:, n_seen : n_seen + self.reg_token.shape[1]] = self.reg_token
        return tokens

    def _patches(self, cuboids: Tensor, dtype: torch.dtype) -> Float[Tensor, "b patch voxel"]:
        """Cut cuboids into patches, z y x, each as its channels lie one after the other."""
        (z, y, x), (dz, dy, dx) = self.config.grid, self.config.patch_shape
        cut = cuboids.to(dtype).view(*cuboids.shape[:2], z, dz, y, dy, x, dx)
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(len(cuboids), z * y * x, -1)


def _normalised(cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """What `normalise` gives, in fewer turns through the memory."""
    flat = cuboids.flatten(2)
    mean = flat.mean(2, keepdim=True)
    centred = flat - mean
    n = flat.shape[2]
    deviation = torch.linalg.vector_norm(centred, dim=2, keepdim=True) / math.sqrt(n)
    return centred.mul_(unit(mean, deviation).reciprocal()).view(cuboids.shape)


class FastClassifier(nn.Module):
    """What `Classifier` computes, with a vision transformer, for inference alone.

    Parameters
    ----------
    config, head
        Of backbone and head.
    """

    def __init__(self, config: Vit3dConfig, head: HeadConfig) -> None:
        super().__init__()
        self.backbone = FastVit(config)
        width = SIZES[config.size][0] if head.takes_tokens else config.embedding_width
        self.head = Head(head, width)

    def settle(self, device: torch.device, dtype: torch.dtype) -> FastClassifier:
        """Move to a device, and what comes before the last normalisation to a precision."""
        self.to(device).eval().requires_grad_(False)
        for name, part in self.backbone.named_children():
            if name in ("patch_embed", "blocks"):
                part.to(dtype)
        return self

    def features(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b *token feature"]:
        """What the head takes of raw cuboids: embeddings, or patch tokens."""
        cuboids = match_channels(cuboids.to(self.head.mean.device), self.backbone.config.channels)
        if cuboids.is_cuda:
            return self._features(cuboids)
        parts = cuboids.split(_AT_A_TIME)
        n = min(len(parts), torch.get_num_threads())
        if n < 2 or self.backbone.patch_embed.proj.weight.dtype != torch.bfloat16:
            return torch.cat([self._features(part) for part in parts])
        return torch.cat(list(_threads(n, torch.get_num_threads()).map(self._features, parts)))

    @torch.inference_mode()  # which each thread has to be told
    def _features(self, cuboids: Tensor) -> Tensor:
        tokens = self.backbone(cuboids)
        if self.head.config.takes_tokens:
            return tokens[:, 1:]  # type: ignore[no-any-return]
        return self.backbone.pool_tokens(tokens)

    def forward(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Logits of raw cuboids."""
        return self.head(self.features(cuboids))  # type: ignore[no-any-return]


@cache
def _threads(n: int, total: int) -> ThreadPoolExecutor:
    """Threads that compute a part each, and share `total` between them.

    Within an operation, threads wait for each other at its end: where something else runs too, a
    thread that reads for instance, they wait most of the time. Parts wait for nobody.
    """
    pool = ThreadPoolExecutor(n, "classify", torch.set_num_threads, (max(1, total // n),))
    everyone = Barrier(n)
    for started in [pool.submit(everyone.wait) for _ in range(n)]:
        started.result()
    torch.set_num_threads(total)  # for all threads but those
    return pool


def load_fast(path: Path) -> tuple[nn.Module, Header]:
    """Load the network of a fine-tuning run where and as this machine is fastest.

    A network that is no vision transformer is as it was trained.

    Returns
    -------
    network : nn.Module
        From raw cuboids, on whatever device, to logits on its own.
    header : Header
        What the file says.

    Raises
    ------
    CheckpointError
        If there is no classifier of ours at `path`.
    """
    header, tensors = load_checkpoint(path, "classifier")
    config = read_backbone_config(header.backbone)
    if not isinstance(config, Vit3dConfig):
        from cubeclf_core.trained import load_trained

        return load_trained(path)
    try:
        classifier = FastClassifier(config, HeadConfig.from_dict(header.head))
        classifier.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights its header tells of") from error
    return classifier.settle(*fastest()), header
