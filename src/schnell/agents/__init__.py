"""What agents use: the tools of the Model Context Protocol, over the native HTTP API.

https://modelcontextprotocol.io; the protocol itself is the official SDK's.
"""

from schnell.agents.tools import Connect, build_tools

__all__ = ["Connect", "build_tools"]
