"""What the trainer and the monitor say to each other: pydantic models, nothing else."""
