"""How models are taught: the embedded model's recipe and the LoRA trainer."""
