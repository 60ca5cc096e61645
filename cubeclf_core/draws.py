"""Random numbers that are a pure function of (seed, step, item), for whole batches at once.

A generator with a state makes what an item gets depend on who came before it: another split of the
batch over devices, or a resume, gives other numbers. Here each item of each step has its own
sequence, counted and hashed (splitmix64; Steele et al., doi:10.1145/2714064.2660195).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64
_MANY = 4096  # numbers an item

Words = npt.NDArray[np.uint64]


class Draws:
    """The random numbers of a batch; each call returns fresh ones.

    Parameters
    ----------
    seed
        Of the run.
    step
        Of the training.
    items
        Which items of the whole batch these are: a rank or a part of an accumulated batch has some
        of them, and draws for them what one process with all of them would.
    device
        Where the numbers are wanted.

    Examples
    --------
    >>> whole, second = Draws(0, 7, range(4)), Draws(0, 7, range(2, 4))
    >>> bool((whole.uniform(3)[2:] == second.uniform(3)).all())
    True
    """

    def __init__(
        self, seed: int, step: int, items: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        each = np.array(list(items), np.uint64)
        keys = _mix(each * np.uint64(_GOLDEN) + np.uint64(_key(seed, step)))
        self._hold(keys, torch.device(device))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._device

    def fork(self, purpose: int, *, host: bool = False) -> Draws:
        """Draws for the same items that have nothing to do with these, whatever these have drawn.

        For a part of the work that may or may not draw: what follows it does not shift.

        Parameters
        ----------
        purpose
            Which fork.
        host
            Give the same numbers on the CPU, for a choice that the code branches on: nothing then
            waits for the device.
        """
        keys = _mix(self._keys ^ np.uint64(_key(purpose + 1, 0)))
        return self._other(keys, torch.device("cpu") if host else self.device)

    def take(self, index: Int[Tensor, " taken"]) -> Draws:
        """Draws for some of the items, by their place among these; `index` is on the CPU.

        Each of them goes on where it stands here.
        """
        taken = self._other(self._keys[index.numpy()], self.device)
        taken._calls = self._calls
        return taken

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "b ..."]:
        """Draw uniformly from [low, high), shape (b, *shape), float32."""
        n = math.prod(shape)
        if n > _MANY:
            bits = self._bits(n)
            share = ((bits >> 40) & 0xFFFFFF).float().mul_(2.0**-24)  # as many as float32 holds
            if (low, high) != (0.0, 1.0):
                share = share.mul_(high - low).add_(low)
            return share.view(len(self), *shape)
        # Few numbers are made here and sent at once: on a GPU each small operation costs its start.
        drawn = (self._words(n) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        if (low, high) != (0.0, 1.0):
            drawn = drawn * np.float32(high - low) + np.float32(low)
        return send(torch.from_numpy(drawn).view(len(self), *shape), self.device)

    def coin(self, probability: float, *shape: int) -> Bool[Tensor, "b ..."]:
        """Draw True with a probability, shape (b, *shape)."""
        return self.uniform(*shape) < probability

    def normal(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Draw from a normal distribution of mean 0 and deviation 1, shape (b, *shape), float32."""
        n = math.prod(shape)
        if self.device.type == "cpu" and n > _MANY:
            return self._normal_on_cpu(n).view(len(self), *shape)
        bits = self._bits(-(-n // 2))  # Box and Muller make two normal numbers of two uniform ones
        radius = ((bits >> 40) & 0xFFFFFF).float().add_(1).mul_(2.0**-24).log_().mul_(-2).sqrt_()
        angle = ((bits >> 8) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return both[:, :n].reshape(len(self), *shape)

    def _normal_on_cpu(self, n: int) -> Float[Tensor, "b n"]:
        """Draw whole images of noise, with a generator an item: eight times as fast there."""
        out = torch.empty(len(self), n)
        generator = torch.Generator()
        for row, seed in zip(out, self._words(1)[:, 0].view(np.int64).tolist(), strict=True):
            torch.randn(n, generator=generator.manual_seed(seed), out=row)
        return out

    def _words(self, n: int) -> Words:
        """Random bits, shape (b, n)."""
        counts = np.arange(1, n + 1, dtype=np.uint64)
        return _mix(self._start()[:, None] + counts * np.uint64(_GOLDEN))

    def _bits(self, n: int) -> Int[Tensor, "*any"]:
        """The same bits, made where many are made fastest."""
        start = send(torch.from_numpy(self._start().view(np.int64)), self.device)
        counts = torch.arange(1, n + 1, dtype=torch.int64, device=self.device)
        return _mix_there(start[:, None] + counts * _signed(_GOLDEN))

    def _start(self) -> Words:
        self._calls += 1
        return _mix(self._keys + np.uint64(self._calls * _GOLDEN % _WORD))

    def _hold(self, keys: Words, device: torch.device) -> None:
        self._keys, self._device = keys, device
        self._calls = 0

    @classmethod
    def _other(cls, keys: Words, device: torch.device) -> Draws:
        other = object.__new__(cls)
        other._hold(keys, device)
        return other


def send(small: Tensor, device: torch.device) -> Tensor:
    """Send a few numbers to a device, without waiting for it where that is safe."""
    return small.to(device, non_blocking=device.type == "cuda")


def _mix(x: Words) -> Words:
    """Scramble 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
    return x ^ (x >> np.uint64(31))


def _mix_there(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Do the same in torch, whose shift keeps the sign: the copies of it are masked off."""
    x = x ^ ((x >> 30) & ((1 << 34) - 1))
    x = x.mul_(_signed(_MIX[0]))
    x ^= (x >> 27) & ((1 << 37) - 1)
    x.mul_(_signed(_MIX[1]))
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def _key(a: int, b: int) -> int:
    """Scramble two numbers into one, in Python's integers."""
    state = 0
    for part in (a, b):
        state = (state + part + 1) * _GOLDEN % _WORD
        state = ((state ^ (state >> 30)) * _MIX[0]) % _WORD
        state = ((state ^ (state >> 27)) * _MIX[1]) % _WORD
        state ^= state >> 31
    return state


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
