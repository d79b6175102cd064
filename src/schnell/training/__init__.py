"""The LoRA trainer: a folder of captioned pictures in, a LoRA file out."""
