"""The peer: diffusers' own FluxPipeline, used as its documentation shows."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from schnell.engine.engine import Engine
from schnell.errors import BenchmarkError
from schnell.models.folder import ModelFolder
from schnell.spec import GenerationSpec

#: What a user writes to draw one picture with diffusers; the sizes are those of the embedded model.
STOCK_SCRIPT: Final = """
import sys, torch
from diffusers import FluxPipeline
folder, prompt, output, device, dtype = sys.argv[1:6]
pipe = FluxPipeline.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
picture = pipe(prompt, width=256, height=256, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=32,
               generator=torch.Generator("cpu").manual_seed(7)).images[0]
picture.resize((1024, 1024), 1).save(output, quality=80, method=2)
"""


def peer_dtype(engine: Engine, *, go_fast: bool = True) -> torch.dtype:
    """The number format of the stock pipeline beside an engine: on a GPU the engine's own, on a CPU float32.

    On a CPU, float32 is what a user of diffusers runs: its bfloat16 is slower there.
    """
    return torch.float32 if engine.device.type == "cpu" else engine.precision_for(go_fast=go_fast).dtype


def stock_pipeline(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' FluxPipeline over a model folder, on a device, without log lines and progress bars."""
    try:
        import diffusers
    except ImportError as error:
        raise BenchmarkError("the peer of this benchmark is diffusers: pip install diffusers accelerate") from error
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    pipeline = diffusers.FluxPipeline.from_pretrained(folder.path, dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_peft_adapters(pipeline: Any, files: Sequence[Path]) -> None:
    """Load LoRA files into a pipeline, each as an adapter named after its file.

    Raises:
        BenchmarkError: peft, which the peer needs, is not installed.
    """
    try:
        import peft  # noqa: F401  # asked for its presence
    except ImportError as error:
        raise BenchmarkError("the peer of this benchmark needs peft: pip install peft") from error
    for file in files:
        pipeline.load_lora_weights(str(file), adapter_name=file.stem)


@torch.inference_mode()
def draw_with_pipeline(pipeline: Any, folder: ModelFolder, spec: GenerationSpec, seed: int) -> Image.Image:
    """One picture by the stock pipeline, at the size that the model draws at: without the upscale to `spec.size`."""
    grid = folder.token_grid(spec.size)
    picture: Image.Image = pipeline(
        spec.prompt,
        width=grid.width * folder.pixels_per_token,
        height=grid.height * folder.pixels_per_token,
        num_inference_steps=spec.steps,
        guidance_scale=0.0,
        max_sequence_length=folder.sequence_length,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return picture


def run_quietly(command: Sequence[str]) -> None:
    """Run a process to its end.

    Raises:
        BenchmarkError: it failed; the message has the end of its stderr.
    """
    # installed packages have bytecode; a checkout gets its own in the first run, which is not counted
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(  # noqa: S603  # our own commands
        command, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise BenchmarkError(f"{command[0]} failed: {done.stderr[-500:]}")


def run_stock_script(engine: Engine, prompt: str, output: Path) -> None:
    """Run `STOCK_SCRIPT` in a process of its own, on the engine's device."""
    dtype = str(peer_dtype(engine)).removeprefix("torch.")
    arguments = [str(engine.folder.path), prompt, str(output), str(engine.device), dtype]
    run_quietly([sys.executable, "-c", STOCK_SCRIPT, *arguments])
