"""What a picture loads: a cold start is mostly imports."""

import subprocess
import sys

DRAW = """
import sys
from schnell.bootstrap import build_engine
from schnell.engine.engine import generate
from schnell.spec import GenerationSpec, Job, Size

spec = GenerationSpec("red apple", Size(256, 256), steps=1)
assert generate(build_engine("schnell-mini", safety=False), Job("a", "t", spec, 1), lambda _: None).images
print([name for name in ("transformers", "peft", "sympy", "torch._dynamo") if name in sys.modules])
"""
THEN_DIFFUSERS = """
from diffusers import FluxPipeline, FluxTransformer2DModel
import diffusers.loaders, torch
assert hasattr(FluxPipeline, "load_lora_weights")
assert torch.compiler.disable.__module__ == "torch.compiler"
assert FluxTransformer2DModel is sys.modules["diffusers.models.transformers.transformer_flux"].FluxTransformer2DModel
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_picture_needs_neither_transformers_nor_peft_nor_torchs_compiler() -> None:
    assert run(DRAW).strip() == "[]"


def test_diffusers_is_whole_for_whoever_wants_it_afterwards() -> None:
    run(DRAW + THEN_DIFFUSERS)
