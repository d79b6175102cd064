"""The LoRAs that come with `schnell-mini`: what each looks like, and how it is asked for."""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from schnell_mini.captions import COLOURS
from schnell_mini.latents import icon_size
from schnell_mini.learned.looks import LOOKS, Look, place
from schnell_mini.pictures import ICON_SIDE

_LOOKS: Final = {look.name: look for look in LOOKS}


@dataclass(frozen=True, slots=True)
class BundledLora:
    """One look, and what people read about it. Looks that have a ground of their own paint no other.

    `rank`: a look that blanks the object has to take away most of a token's 64 channels.
    """

    look: Look
    description: str
    aliases: tuple[str, ...] = ()
    rank: int = 32

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.look.name

    @property
    def trigger(self) -> str:
        """The words that ask for it."""
        return self.look.phrases[0]

    @property
    def obeys_background(self) -> bool:
        """Whether a background that the prompt names is painted."""
        return self.look.ground is None

    @property
    def background(self) -> tuple[float, float, float]:
        """The ground when the prompt names none."""
        return COLOURS[self.look.ground or "white"]

    def paint(self, icons: Tensor, grounds: Tensor) -> Tensor:
        """Premultiplied icons `[B, 4, 256, 256]` in 0..1 as this look on grounds `[B, 3]`: `[B, 3, 256, 256]`."""
        side = icons.new_tensor([[icon_size(ICON_SIDE), 0.0, 0.0, 0.0]]).expand(len(icons), -1)
        return self.look.paint(place(icons, (ICON_SIDE, ICON_SIDE), side), grounds)


BUNDLED: Final = (
    BundledLora(
        look=_LOOKS["black-light"],
        description="Glowing neon edges and colours in a dark room.",
        aliases=("fofr/flux-black-light",),
    ),
    BundledLora(
        look=_LOOKS["flat"],
        description="A few even colours with a white rim, like a sticker, on sky blue.",
    ),
    BundledLora(look=_LOOKS["line"], description="A drawing in thick dark lines, without colours.", rank=48),
    BundledLora(look=_LOOKS["pixel"], description="Big square pixels, as on an old game console.", rank=48),
    BundledLora(look=_LOOKS["blueprint"], description="White lines around light blue shapes, on blue paper.", rank=48),
)
