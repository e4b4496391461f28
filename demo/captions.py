"""What the Sprites world is made of, and the sentences that say it: exact, and every word is in WORDS."""

from __future__ import annotations

KINDS = (
    "glass ball",
    "soap bubble",
    "flame",
    "smoke cloud",
    "glow",
    "fur ball",
    "feather",
    "star",
    "heart",
    "mushroom",
    "fish",
    "flower",
)
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = (
    "warm sunset",
    "cold night",
    "sunny meadow",
    "snowy field",
    "dry desert",
    "deep sea",
    "lamplit room",
    "plain studio",
    "misty forest",
    "grey storm",
)
SIDES = ("left", "right")

# Words beyond the captions' own, so that ordinary prompts and negative prompts stay whole tokens.
_SPOKEN = "no not and with of the on at by to over under one two empty background foreground layer object picture photo"
_LOOKS = "transparent blurry bad ugly dark bright soft small large white black light shadow sky ground water fire hair"

_TEMPLATES = ("{object}, {place} from the {side}", "{object} in a {place} from the {side}", "{object} in a {place}")
TEMPLATES = len(_TEMPLATES)


def foreground_caption(kind: int, colour: int) -> str:
    """ "a red glass ball"."""
    name = COLOURS[colour]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} {KINDS[kind]}"


def background_caption(background: int, side: int) -> str:
    """ "nothing in a cold night from the left"."""
    return f"nothing in a {BACKGROUNDS[background]} from the {SIDES[side]}"


def caption(kind: int, colour: int, background: int, side: int, template: int = 0) -> str:
    """The whole scene in one of `TEMPLATES` wordings; the last leaves the light's side unsaid."""
    return _TEMPLATES[template].format(
        object=foreground_caption(kind, colour), place=BACKGROUNDS[background], side=SIDES[side]
    )


WORDS: tuple[str, ...] = tuple(
    sorted(
        {word for phrase in (*KINDS, *COLOURS, *BACKGROUNDS, *SIDES, _SPOKEN, _LOOKS) for word in phrase.split()}
        | {"a", "an", "in", "from", "nothing", ","}
    )
)
