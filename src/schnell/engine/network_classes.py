"""diffusers' one network class that the engine uses: the autoencoder.

A plain import of it takes twice as long as torch's own, most of it for packages that it does not use: torch's
compiler with sympy behind it, transformers, peft, and diffusers' other networks. `import_network_classes` skips those.
What was measured, and what else was tried, is in docs/decisions/0006-lean-networks-on-a-cpu.md.
"""

import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, Final

import torch

from schnell.errors import ModelFolderError

_SIBLING_PACKAGES: Final = ("diffusers.models.autoencoders",)
_LOADERS: Final = "diffusers.loaders"


def network_class(part: str) -> Any:
    """The class of diffusers' `vae`; imported now if it was not yet."""
    return _network_classes()[part]


def import_network_classes() -> None:
    """Import the class without the packages that it does not use. For a process's main thread, before any other.

    While it runs, those packages look as if they were not installed, to every thread; so where other threads exist
    already nothing is hidden, and `network_class` imports the class as anybody would, some seconds slower.
    """
    if threading.active_count() > 1:
        return
    with _compiler_hidden():
        # first, while transformers and peft are to be seen: diffusers notes here, once, what is installed
        import diffusers.utils

        with _hidden("transformers"), _loaders_hidden(diffusers.utils.import_utils), _bare_packages(_SIBLING_PACKAGES):
            _network_classes()


@cache  # after a lean import the parent packages are gone from `sys.modules`; a second import would run them whole
def _network_classes() -> Mapping[str, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return {"vae": AutoencoderKL}


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let a package that is not loaded yet look as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's own mark of what must not be imported
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _compiler_hidden() -> Iterator[None]:
    """Let diffusers load without torch's compiler, as it does where `torch._dynamo` cannot be imported.

    diffusers marks its step caches with `torch.compiler.disable`, which imports the compiler to do so. We use none of
    these caches, so the mark is left out.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    compiler: Any = torch.compiler
    disable = compiler.disable
    compiler.disable = _leave_unmarked
    try:
        with _hidden("torch._dynamo"):
            yield
    finally:
        compiler.disable = disable


def _leave_unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    # diffusers writes both `@disable` and `@disable()`
    return _leave_unmarked if function is None else function


@contextmanager
def _loaders_hidden(import_utils: Any) -> Iterator[None]:
    """Let diffusers' networks load without its LoRA loaders' needs, peft and transformers: LoRAs are ours.

    The loaders remember what was missing when they were imported. So they are forgotten afterwards, and whoever wants
    them gets them whole.
    """
    loaders_are_new = _LOADERS not in sys.modules
    known = (import_utils._peft_available, import_utils._transformers_available)
    import_utils._peft_available = import_utils._transformers_available = False
    try:
        yield
    finally:
        import_utils._peft_available, import_utils._transformers_available = known
        if loaders_are_new:
            for name in [name for name in sys.modules if name == _LOADERS or name.startswith(_LOADERS + ".")]:
                del sys.modules[name]
            vars(sys.modules["diffusers"]).pop("loaders", None)


@contextmanager
def _bare_packages(names: tuple[str, ...]) -> Iterator[None]:
    """Let modules of these packages be imported without the packages' `__init__`, which imports all their networks.

    Afterwards the packages are as if never imported, so that anyone who wants them whole gets them whole.
    """
    added: list[str] = []
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _bare_package(name)
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _bare_package(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModelFolderError(f"the installed diffusers has no {name}: install the version that schnell asks for")
    return importlib.util.module_from_spec(spec)
