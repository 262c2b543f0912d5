"""Weights of other formats to ours: LLaVA, LLaVA-HR, DPN, Hugging Face, LoRA and sharded runs."""
