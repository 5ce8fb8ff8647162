"""Text encoders and pipelines: a record each, and what a pipeline does with a prompt."""
