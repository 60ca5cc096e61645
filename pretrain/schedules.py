"""What changes with the step: pure functions of the config and the step."""

from __future__ import annotations

from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule

from pretrain.config import PretrainConfig


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Rise linearly over the warm-up, then fall along a cosine to a thousandth."""
    peak = config.learning_rate
    warm_up = max(1, round(config.warm_up * config.steps))
    rate: float = cosine_warmup_schedule(
        step=step,
        max_steps=config.steps + 1,
        start_value=peak,
        end_value=peak / 1000,
        warmup_steps=warm_up,
        warmup_start_value=peak / warm_up,
    )
    return rate


def weight_decay(config: PretrainConfig, step: int) -> float:
    """Go from `weight_decay` to `weight_decay_end` along a cosine."""
    start, end = config.weight_decay, config.weight_decay_end
    if end is None:
        return start
    decay: float = cosine_schedule(
        step=step, max_steps=config.steps + 1, start_value=start, end_value=end
    )
    return decay
