"""What a finished picture is given to prove where it came from: an invisible mark, and signed credentials.

The order is: resample, check for safety, `mark`, encode with the receipt inside, `sign`. A mark must be in the pixels
before they are encoded, and a signature is over the whole file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from schnell.clock import now
from schnell.provenance.image_file import MEDIA_TYPES
from schnell.provenance.mark import SCHEME, embed
from schnell.provenance.receipt import Receipt, mark_number

if TYPE_CHECKING:
    # an engine that does not sign runs without c2pa-python, as on a bare GPU machine
    from schnell.provenance.credentials import CredentialsSigner


@dataclass(frozen=True, slots=True)
class Proof:
    """Which of the two an engine gives. `signer` None: pictures are not signed.

    Safe to call from one thread beside others: it holds nothing that changes.
    """

    marks: bool = False
    signer: "CredentialsSigner | None" = None

    @property
    def scheme(self) -> str | None:
        """The mark's scheme, as receipts name it; None: pictures are not marked."""
        return SCHEME if self.marks else None

    def mark(self, picture: Image.Image, receipt: Receipt) -> tuple[Image.Image, str | None]:
        """The picture with the mark that its receipt promises, and what the mark carries in hexadecimal."""
        if receipt.mark is None:
            return picture, None
        number = mark_number(receipt.to_json())
        return Image.fromarray(embed(np.asarray(picture), number)), f"{number:010x}"

    def sign(self, data: bytes, receipt: Receipt, *, with_prompt: bool) -> tuple[bytes, str | None]:
        """The file with credentials inside, and their label. Raises CredentialsError."""
        if self.signer is None:
            return data, None
        media_type = MEDIA_TYPES[receipt.output_format]
        return self.signer.sign(data, media_type, receipt.to_json(), now(), with_prompt=with_prompt)


NO_PROOF: Final = Proof()
