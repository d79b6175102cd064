"""How fast schnell is: each figure beside that of its peer, what a user would pick instead, measured in one run."""
