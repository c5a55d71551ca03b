"""What a companion needs to know about a training that is not ours."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shared.base import Name
from trainer.config import GuardsConfig
from trainer.link.config import LinkConfig
from trainer.recovery import RecoveryConfig
from trainer.section import Section


class CompanionConfig(Section):
    """Where its files go, under which name it is told, and how it guards. Only ``folder`` must be given."""

    folder: Path = Field(description="Checkpoints, record, incidents and spool of this run lie here.")
    run: Name = Field("training", description="Name of the run on the monitor.")
    project: Name = Field("default", description="Its project there.")
    max_norm: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Gradients above this global norm are clipped to it. None: what the framework was told "
        "to clip to, which it then leaves to us; else the guards' own limits alone.",
    )
    guards: GuardsConfig = GuardsConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    link: LinkConfig = LinkConfig()
