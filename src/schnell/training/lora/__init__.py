"""Training a LoRA for a FLUX-shaped model, and the five that come with `schnell-mini`."""
