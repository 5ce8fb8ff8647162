"""Other tools: LoRA files, checkpoints, eval-unlearn, the pipelines that a command names."""
