"""The objects of scenes: 24 animals out of a font of emoji, as pictures with transparency."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scaleup.common.files import new_directory

ANIMALS = {
    **{"bee": 0x1F41D, "camel": 0x1F42A, "cat": 0x1F408, "cow": 0x1F404, "crocodile": 0x1F40A, "dog": 0x1F415},
    **{"dragon": 0x1F409, "elephant": 0x1F418, "goat": 0x1F410, "horse": 0x1F40E, "ladybird": 0x1F41E},
    **{"monkey": 0x1F412, "mouse": 0x1F401, "octopus": 0x1F419, "penguin": 0x1F427, "pig": 0x1F416},
    **{"rabbit": 0x1F407, "ram": 0x1F40F, "rooster": 0x1F413, "snail": 0x1F40C, "snake": 0x1F40D},
    **{"tiger": 0x1F405, "turtle": 0x1F422, "whale": 0x1F40B},
}
PIXELS = 109  # the one size of the font's bitmaps
CANVAS = (136, 128)  # of a bitmap


def draw_animals(font: Path, out: Path) -> None:
    """Write ``out/NAME.png`` for each animal, cut to what is not transparent."""
    letters = ImageFont.truetype(str(font), PIXELS)
    with new_directory(out) as folder:
        for name, code in ANIMALS.items():
            picture = Image.new("RGBA", CANVAS)
            ImageDraw.Draw(picture).text((0, 0), chr(code), font=letters, embedded_color=True)
            picture.crop(picture.getbbox()).save(folder / f"{name}.png")
