"""How fast schnell is, each figure beside what a user would pick instead, measured in one run."""
