#!/usr/bin/env python3
"""Writes tests/data/pictures: small files by Pillow and NumPy, as users' programs make them.

Each picture has four quadrants when it is upright: red, green, blue, white; grey ones 50, 100, 150, 200.
Needs Pillow and NumPy.
"""

import pathlib

import numpy
from PIL import Image

OUT = pathlib.Path(__file__).parent / "data" / "pictures"
COLOURS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]
GREYS = [[50, 100], [150, 200]]
HALF = 16
ORIENTATION = 0x0112


def quadrants(values):
    values = numpy.array(values, numpy.uint8)
    return values.repeat(HALF, 0).repeat(HALF, 1)


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def main():
    OUT.mkdir(exist_ok=True)
    colour = Image.fromarray(quadrants(COLOURS))
    grey = Image.fromarray(quadrants(GREYS))
    jpeg = dict(quality=95, subsampling=0)
    colour.save(OUT / "colour.jpg", **jpeg)
    colour.save(OUT / "progressive.jpg", progressive=True, **jpeg)
    colour.save(OUT / "subsampled.jpg", quality=95, subsampling=2)
    colour.convert("CMYK").save(OUT / "cmyk.jpg", quality=95)
    grey.save(OUT / "grey.jpg", quality=95)
    # What a camera keeps that was held on its side: to be turned by 90 degrees clockwise.
    turned = colour.transpose(Image.Transpose.ROTATE_90)
    turned.save(OUT / "turned.jpg", exif=exif(6), **jpeg)
    turned.save(OUT / "turned.png", exif=exif(6))
    for orientation, way in enumerate(
        ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"], start=2
    ):
        mirrored = colour.transpose(Image.Transpose[way])
        mirrored.save(OUT / f"orientation{orientation}.png", exif=exif(orientation))
    colour.transpose(Image.Transpose.TRANSVERSE).save(OUT / "orientation7.png", exif=exif(7))
    colour.transpose(Image.Transpose.ROTATE_270).save(OUT / "orientation8.png", exif=exif(8))
    colour.save(OUT / "colour.png")
    grey.save(OUT / "grey.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(OUT / "palette.png")
    alpha = colour.copy()
    alpha.putalpha(200)
    alpha.save(OUT / "alpha.png")
    Image.fromarray(quadrants(GREYS).astype(numpy.uint16) * 256 + 7).save(OUT / "deep.png")
    frames = [colour.transpose(Image.Transpose.ROTATE_90), colour.transpose(Image.Transpose.ROTATE_180)]
    colour.save(OUT / "animated.png", save_all=True, append_images=frames)
    colour.save(OUT / "animated.gif", save_all=True, append_images=frames)
    colour.save(OUT / "colour.webp")

    images = numpy.arange(6 * 28 * 28, dtype=numpy.uint8).reshape(6, 28, 28)
    labels = numpy.array([[0], [1], [2], [0], [1], [2]], numpy.uint8)
    arrays = dict(
        train_images=images, train_labels=labels, test_images=images[:3], test_labels=labels[:3]
    )
    numpy.savez(OUT / "grey.npz", **arrays)
    numpy.savez_compressed(OUT / "deflated.npz", **arrays)
    rgb = numpy.stack([images[:2], images[:2] // 2, images[:2] // 4], axis=-1)
    arrays = dict(train_images=rgb, train_labels=labels[:2, 0].astype(numpy.int64))
    numpy.savez_compressed(OUT / "colour.npz", **arrays)
    numpy.savez_compressed(OUT / "fortran.npz", **{**arrays, "train_images": numpy.asfortranarray(rgb)})
    numpy.savez_compressed(OUT / "floats.npz", **{**arrays, "train_images": rgb.astype(numpy.float32)})
    numpy.savez_compressed(OUT / "negative.npz", **{**arrays, "train_labels": numpy.array([0, -1])})
    numpy.savez_compressed(OUT / "many.npz", **{**arrays, "train_labels": numpy.eye(2, dtype=numpy.uint8)})


if __name__ == "__main__":
    main()
