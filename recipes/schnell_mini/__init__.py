"""The recipe of `schnell-mini`, from icon pictures to a diffusers folder."""
