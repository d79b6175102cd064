"""`make gpu-check`: FLUX.1 [schnell] at its true size on a GPU, everything that is to be known of it in one go.

A GPU is at hand for minutes, and nobody sits beside it. So the sections run in the order of their worth, each in a
process of its own and within its own time, and what was measured is in the file as soon as it is known. Weights are
random and made on the card: what is measured is time, memory and agreement, never a picture's beauty. Needs torch,
diffusers and structlog beside what these bring; `--dry` runs every section on the CPU with a tiny network.
"""
