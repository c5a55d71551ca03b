"""Guards, proved checkpoints and the monitor beside a training loop that somebody else owns."""
