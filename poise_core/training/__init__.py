"""Training a policy with a candidate: the trainer, the DeepSpeed engine, the worker process and its launcher."""
