"""What a spec says to the watchdog; `genworker.training.watchdog` is the judge that goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from genworker.config import Spec, flattened


class WatchdogSpec(Spec):
    """The ``watchdog`` part of a training spec: when to raise an alarm, and when to go back to the last good checkpoint."""

    bands: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="healthy range of a metric, [low, high] with null for none; replaces the family's own",
    )
    patience: Annotated[int, Field(ge=1)] = Field(3, description="reports in a row outside a band before the alarm")
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        20,
        description="optimizer steps with a non-finite loss or gradient (each is skipped and counted) within 20 reports before "
        "the run has diverged",
    )
    max_skipped_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="alarm when more than this share of a report's steps was skipped for the size of their gradient",
    )
    gradient_growth: Annotated[float, Field(gt=1)] = Field(
        100.0,
        description="the run has diverged when a gradient norm is so many times its usual size for `patience` reports",
    )
    min_speed_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="alarm when images/s fall below this share of their usual value"
    )
    max_rank_lag: Annotated[float, Field(gt=1)] = Field(
        2.0,
        description="alarm when a rank computes, or waits for data, so many times as long per step as the median rank",
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        2, description="times to go back to the last good checkpoint with another seed before the run stops"
    )
    rollback_lr_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="factor on the learning rate after each rollback; 1 keeps it"
    )

    @field_validator("bands", mode="before")
    @classmethod
    def _one_name_each(cls, bands: Any) -> Any:
        """Names of metrics have dots, which ``--set watchdog.bands.discriminator.real_sign=[null,0.9]`` takes for levels."""
        return dict(flattened(bands)) if isinstance(bands, Mapping) else bands

    @model_validator(mode="after")
    def _bands_have_an_inside(self) -> Self:
        for metric, (low, high) in self.bands.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"bands {metric} [{low:g}, {high:g}]: every value is outside; write [low, high]")
        return self
