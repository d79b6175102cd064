"""What drawing a picture imports: a cold start is mostly imports."""

import subprocess
import sys

DRAW = """
import sys
from schnell.bootstrap import build_engine
from schnell.engine.engine import generate
from schnell.spec import GenerationSpec, Job, Size

engine = build_engine("schnell-mini", safety=False)
spec = GenerationSpec("red apple", Size(256, 256), steps=1)
assert generate(engine, Job("a", "t", spec, 1), lambda _: None).images
unwanted = ("transformers", "peft", "sympy", "torch._dynamo", "diffusers.models.transformers")
print([name for name in sys.modules if name.startswith(unwanted)])
"""
THEN_DIFFUSERS = """
from diffusers import FluxPipeline, AutoencoderKL
import diffusers.loaders, torch
assert hasattr(FluxPipeline, "load_lora_weights")
assert torch.compiler.disable.__module__ == "torch.compiler"
assert AutoencoderKL is sys.modules["diffusers.models.autoencoders.autoencoder_kl"].AutoencoderKL
"""
BESIDE_A_THREAD = """
import sys, threading
from schnell.engine.network_classes import import_network_classes, network_class

done = threading.Event()
threading.Thread(target=done.wait).start()
import_network_classes()
print([name for name in sys.modules if name.partition(".")[0] == "diffusers"])
print(network_class("vae").__name__, "torch._dynamo" in sys.modules)
done.set()
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_picture_needs_neither_another_transformer_nor_peft_nor_torchs_compiler() -> None:
    assert run(DRAW).strip() == "[]"


def test_diffusers_is_whole_for_whoever_wants_it_afterwards() -> None:
    run(DRAW + THEN_DIFFUSERS)


def test_nothing_is_hidden_from_other_threads() -> None:
    assert run(BESIDE_A_THREAD).split("\n")[:2] == ["[]", "AutoencoderKL True"]
