import torch
from PIL import Image, ImageDraw

from schnell_mini.captions import IconLabel
from schnell_mini.look_figures import held_out_accuracy, paint, train_classifier, worst_edge
from schnell_mini.lora_drawing import LoraArtist
from schnell_mini.lora_icons import Icon
from schnell_mini.lora_styles import BUNDLED
from schnell_mini.own_looks import OWN_LOOKS


def icon(number: int) -> Icon:
    """A coloured ellipse."""
    picture = Image.new("RGBA", (256, 256))
    box = (20 + 9 * number, 30, 230, 220 - 7 * number)
    ImageDraw.Draw(picture).ellipse(box, fill=(40 * number % 256, 200 - 20 * number, 90, 255))
    return Icon(str(number), IconLabel(f"disc {number}"), picture.copy)


def test_the_classifier_tells_looks_of_icons_that_it_has_not_seen() -> None:
    looks = [None, BUNDLED[0], BUNDLED[4]]
    true = [torch.stack([paint(look, icon(number)) for number in range(8)]) for look in looks]
    pictures = torch.cat([each[:6] for each in true])
    classifier = train_classifier(pictures, torch.arange(3).repeat_interleave(6), 3, epochs=40)
    assert held_out_accuracy(classifier, [each[6:] for each in true]) == 1


def test_own_looks_differ_from_the_plain_picture_and_from_each_other() -> None:
    plain = paint(None, icon(1))
    made = [plain, *(look.paint(plain) for look in OWN_LOOKS)]
    for number, one in enumerate(made):
        assert all((one - other).abs().mean() > 0.05 for other in made[:number])


def test_a_lora_at_scale_zero_draws_what_the_base_draws() -> None:
    artist = LoraArtist()
    base, silent, loud = (
        artist.draw(*given)
        for given in (("none", ["red apple"]), ("flat", ["red apple"], 0.0), ("flat", ["red apple"]))
    )
    assert torch.equal(base, silent)
    assert (base - loud).abs().mean() > 0.01
    assert 0 <= worst_edge(artist, BUNDLED[4]) <= 255
