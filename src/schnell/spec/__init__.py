"""Frozen values that every layer speaks in: what is asked for, what is being drawn, what came out."""

from schnell.spec.generation import (MAX_LORA_SCALE, MAX_OUTPUTS, MAX_PROMPT_LENGTH, MAX_QUALITY, MAX_SEED, MAX_STEPS, MIN_LORA_SCALE, GenerationSpec, LoraRef, OutputFormat, output_format_named, output_seed, random_seed)
from schnell.spec.job import (AdapterUse, FetchListener, FetchProgress, GeneratedImage, Job, JobOutcome, Outlook, Progress, ProgressListener, RunnerSnapshot, Stage)
from schnell.spec.size import (ASPECT_RATIOS, CUSTOM_RATIO, MAX_SIDE, MEGAPIXELS, MIN_SIDE, SIDE_STEP, Size, resolve_size)

__all__ = [
    "ASPECT_RATIOS",
    "CUSTOM_RATIO",
    "MAX_LORA_SCALE",
    "MAX_OUTPUTS",
    "MAX_PROMPT_LENGTH",
    "MAX_QUALITY",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "MEGAPIXELS",
    "MIN_LORA_SCALE",
    "MIN_SIDE",
    "SIDE_STEP",
    "AdapterUse",
    "FetchListener",
    "FetchProgress",
    "GeneratedImage",
    "GenerationSpec",
    "Job",
    "JobOutcome",
    "LoraRef",
    "Outlook",
    "OutputFormat",
    "Progress",
    "ProgressListener",
    "RunnerSnapshot",
    "Size",
    "Stage",
    "output_format_named",
    "output_seed",
    "random_seed",
    "resolve_size",
]
