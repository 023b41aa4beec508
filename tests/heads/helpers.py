"""Pictures, and what makes two answers the same."""

from PIL import Image


def picture(colour="red"):
    return Image.new("RGB", (40, 32), colour)


def key(made):
    """What an answer is, without the time it took."""
    return made.ids, made.text, made.nfe, made.length
