"""Distillation and fine-tuning; nothing in the inference line imports this package."""
