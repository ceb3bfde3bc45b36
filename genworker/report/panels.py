"""Which metrics of a run are drawn together, and what a reader should know about them.

In: the names of the metrics that a run reports. Out: `Panel`s in the order of a page; a metric that no entry of the table
names gets a panel of its own, so that nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

Kind = Literal["lines", "shares", "latents"]


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        section: heading that it stands under.
        title: over the drawing.
        patterns: shell patterns of the metrics' names.
        note: a sentence below the drawing.
        kind: ``lines``, ``shares`` (stacked, of 1) or ``latents`` (one number per latent, as colours).
        log: whether values are drawn on a logarithmic axis, where all are above 0.
        counts: whether it counts what went wrong, and is left out where nothing did.
        limits: of the vertical axis, or None.
        metrics: the names that the run has, filled in by `panels_for`.
    """

    section: str
    title: str
    patterns: tuple[str, ...]
    note: str = ""
    kind: Kind = "lines"
    log: bool = False
    counts: bool = False
    limits: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()


TRAINING, STEPS = "Training", "Steps and speed"

PANELS: tuple[Panel, ...] = (
    Panel(
        TRAINING,
        "Adversarial losses",
        ("discriminator.adversarial", "generator.adversarial", "generator.loss"),
        "Of both players. They need not fall; one that runs away while the other goes to 0 has won.",
    ),
    Panel(
        TRAINING,
        "Negative ELBO and reconstruction",
        ("elbo.negative_elbo", "elbo.nll"),
        "Nats per image, without KL warm-up and free bits; lower is better.",
    ),
    Panel(TRAINING, "KL term", ("elbo.kl",), "Nats per image that the posterior tells about an image."),
    Panel(
        TRAINING, "Minimised losses", ("discriminator.loss", "elbo.loss", "second_stage.loss"), "With all penalties."
    ),
    Panel(
        TRAINING,
        "Signs of the scores",
        ("*.real_sign", "*.pair_sign", "*.fake_sign"),
        "Mean sign of the scores of real images (real_sign) and of real minus generated ones (pair_sign): at 1 the "
        "discriminator is always right, at 0 it cannot tell.",
        limits=(-1.05, 1.05),
    ),
    Panel(
        TRAINING,
        "Gradient penalties",
        ("*.r1", "*.r2", "*.gp"),
        "Squared gradient norm of the discriminator at real (r1) and generated images (r2), or its squared distance from 1 "
        "between them (gp), before their weight.",
        log=True,
    ),
    Panel(TRAINING, "Cost of the penalties", ("*.penalty",), "R1 and R2 as they are added to the loss.", log=True),
    Panel(
        TRAINING,
        "Balance of the penalties",
        ("*.penalty_balance",),
        "log2 of the discriminator's gradient norm at generated over that at real images; at 0 it is equally steep at both.",
    ),
    Panel(
        TRAINING,
        "Gradient norm of the critic",
        ("*.gradient_norm",),
        "At images between real and generated ones; where it is 1, scores are distances.",
    ),
    Panel(
        TRAINING,
        "Strength of augmentation",
        ("*.augment_p",),
        "Probability of each operation on what the discriminator sees.",
    ),
    Panel(
        TRAINING,
        "Training images beside held-out ones",
        ("*.held_out_gap", "elbo_gap"),
        "How much better training images score than images that are never trained on; growth is memorising.",
    ),
    Panel(
        TRAINING,
        "ELBO, trained on and held out",
        ("elbo_train", "elbo_held_out"),
        "Nats per image, higher is better.",
    ),
    Panel(TRAINING, "Active units", ("active_units*",), "Latents that tell something about an image."),
    Panel(
        TRAINING,
        "Information in the latents",
        ("information_share",),
        "How well an image's latents single it out among others, 1 at best; falling, the posterior collapses.",
        limits=(0.0, 1.05),
    ),
    Panel(
        TRAINING,
        "KL per latent",
        ("*kl_per_latent",),
        "Nats, one row per latent; a dark row is a latent that the model does not use.",
        kind="latents",
    ),
    Panel(TRAINING, "Standard deviation of pixels", ("*.sigma",), "Of the calibrated likelihood, in units of [-1, 1]."),
    Panel(
        TRAINING,
        "Gradient norms",
        ("*.grad_norm",),
        "Of the global batch, before clipping.",
        log=True,
    ),
    Panel(STEPS, "Images per second", ("images_per_second",), "Over all workers."),
    Panel(
        STEPS,
        "The longest wait for data",
        ("worst_data_wait_share",),
        "Share of a report's time, of the worker that waits longest; all others wait for it.",
    ),
    Panel(
        STEPS,
        "Where the time goes",
        ("forward_share", "backward_share", "all_reduce_share", "optimizer_share", "data_wait_share", "*_share"),
        "Shares of a report's time, means over the workers. On a GPU, where work is queued, only the sum of forward and "
        "backward tells something.",
        kind="shares",
    ),
    Panel(
        STEPS,
        "What went wrong",
        ("nonfinite_steps", "skipped_steps", "rollbacks", "corrupt_images", "data_retries"),
        "Counts since the run began; of corrupt_images, those that each worker met, and of data_retries, how often the store "
        "failed and was asked again, since it was started last.",
        counts=True,
    ),
)
_NOT_DRAWN = {"images_seen", "seconds"}


def panels_for(names: Iterable[str]) -> list[Panel]:
    """The panels of a run that reports ``names``, those of the table first."""
    left = [name for name in names if name not in _NOT_DRAWN]
    panels = []
    for panel in PANELS:
        matched = [
            name for pattern in panel.patterns for name in left if fnmatchcase(name, pattern)
        ]  # in the order of the patterns
        if matched:
            left = [name for name in left if name not in matched]
            panels.append(replace(panel, metrics=tuple(dict.fromkeys(matched))))
    panels += [Panel(TRAINING, name, (name,), metrics=(name,)) for name in sorted(left)]
    return sorted(panels, key=lambda panel: panel.section == STEPS)
