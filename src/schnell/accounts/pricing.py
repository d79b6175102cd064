from dataclasses import dataclass
from math import ceil

from schnell.spec import GenerationSpec

_MEGAPIXEL = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PriceTable:
    """What one picture costs, in whole credits: a base, the drawing, and each LoRA.

    The drawing is priced by megapixels (rounded up to a quarter) times steps, so a ratio does not change the price.
    """

    per_picture: int = 200
    per_megapixel_step: int = 200
    per_lora: int = 200

    def picture(self, spec: GenerationSpec) -> int:
        """The price of one output of `spec`."""
        quarters = ceil(4 * spec.size.width * spec.size.height / _MEGAPIXEL)
        drawing = ceil(self.per_megapixel_step * quarters * spec.steps / 4)
        return self.per_picture + drawing + self.per_lora * len(spec.loras)

    def total(self, spec: GenerationSpec) -> int:
        """The price of all outputs of `spec`."""
        return self.picture(spec) * spec.num_outputs
