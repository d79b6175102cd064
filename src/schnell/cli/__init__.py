"""The `schnell` command. Each module parses arguments, calls one function of a lower layer, and prints.

Every command imports this whole package, so its modules import only what declaring options needs. What a command runs
it imports in its own body: `schnell generate` starts without the server, `schnell teams` without torch.
"""

from schnell.cli.application import main

__all__ = ["main"]
