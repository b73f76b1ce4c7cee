"""The words of the sticker world: styles, backgrounds, concepts, and how a caption is made of them."""

from __future__ import annotations

import random

STYLES: dict[str, tuple[str, ...]] = {
    "noto": ("noto", "google"),
    "noto-v1": ("blob", "gumdrop"),
    "fluent-emoji": ("glossy", "3d"),
    "fluent-emoji-flat": ("flat", "minimal"),
    "twemoji": ("cartoon", "twitter"),
    "fxemoji": ("bold", "firefox"),
    "emojione": ("classic", "vintage"),
}
"""Source package of the drawings -> words that name its style in a caption; the first is the usual one."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (150, 154, 160),
    "pink": (255, 182, 203),
    "blue": (126, 184, 246),
    "green": (148, 216, 150),
    "yellow": (255, 231, 120),
    "orange": (255, 178, 96),
    "purple": (186, 154, 232),
}
"""Background colour -> RGB; far enough apart that the nearest one is never in doubt on a clean picture."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red apple": ("apple",),
    "automobile": ("car",),
    "hot beverage": ("coffee", "cup of coffee"),
    "soccer ball": ("football", "soccer"),
    "french fries": ("fries", "chips"),
    "wrapped gift": ("gift", "present"),
    "dog face": ("puppy",),
    "cat face": ("kitten",),
    "rabbit face": ("bunny",),
    "doughnut": ("donut",),
    "hamburger": ("burger",),
    "pizza": ("slice of pizza",),
    "honeybee": ("bee",),
    "lady beetle": ("ladybug",),
    "evergreen tree": ("pine tree", "tree"),
    "birthday cake": ("cake",),
    "beer mug": ("beer", "glass of beer"),
    "wine glass": ("wine", "glass of wine"),
    "airplane": ("plane",),
    "jack-o-lantern": ("pumpkin",),
    "gem stone": ("diamond", "gem"),
    "light bulb": ("bulb",),
    "guitar": ("electric guitar",),
    "mobile phone": ("phone", "smartphone"),
    "house with garden": ("home",),
    "pile of poo": ("poop",),
    "ear of corn": ("corn", "maize"),
    "hot pepper": ("chili pepper",),
    "tangerine": ("mandarin",),
    "baby chick": ("chick",),
    "sailboat": ("boat",),
    "bicycle": ("bike",),
    "police car": ("police",),
    "fire engine": ("fire truck",),
    "sun with face": ("smiling sun",),
    "sun": ("sunshine",),
    "video game": ("game controller",),
    "closed umbrella": ("folded umbrella",),
    "umbrella with rain drops": ("umbrella in the rain",),
    "t-shirt": ("shirt",),
    "crown": ("king's crown",),
    "key": ("golden key",),
    "soft ice cream": ("ice cream cone",),
    "potted plant": ("houseplant",),
    "alien monster": ("space invader",),
    "grinning face": ("smiley", "happy face"),
    "sunglasses": ("shades",),
    "loudly crying face": ("crying face",),
    "smiling face with sunglasses": ("cool face",),
    "maple leaf": ("leaf",),
    "teddy bear": ("plush bear",),
    "christmas tree": ("xmas tree",),
    "snowman": ("snow man",),
}
"""Concept -> other words that people type for it."""

ICONIC: tuple[str, ...] = tuple(
    " ".join(name.split())
    for name in """
    dog face, cat face, fox, lion, tiger face, horse face, unicorn, cow face, pig face, mouse face, hamster,
    rabbit face, bear, koala, panda, monkey face, chicken, hatching chick, baby chick, penguin, eagle, duck,
    owl, frog, crocodile, turtle, snake, dragon face, spouting whale, dolphin, fish, tropical fish, shark,
    octopus, crab, shrimp, snail, butterfly, honeybee, lady beetle, spider, bouquet, cherry blossom, rose,
    hibiscus, sunflower, tulip, evergreen tree, palm tree, cactus, four leaf clover, maple leaf, mushroom,
    elephant, grapes, watermelon, tangerine, lemon, banana, pineapple, red apple, green apple, pear, peach,
    cherries, strawberry, tomato, avocado, eggplant, carrot, ear of corn, hot pepper, bread, croissant,
    cheese wedge, hamburger, french fries, pizza, hot dog, taco, popcorn, sushi, soft ice cream, doughnut,
    cookie, birthday cake, chocolate bar, candy, lollipop, hot beverage, wine glass, tropical drink, beer
    mug, house, castle, ferris wheel, locomotive, bus, ambulance, fire engine, police car, taxi, automobile,
    tractor, bicycle, sailboat, airplane, helicopter, rocket, alarm clock, crescent moon, sun, star, cloud,
    rainbow, umbrella, snowflake, snowman, fire, jack-o-lantern, christmas tree, balloon, wrapped gift,
    trophy, soccer ball, basketball, crystal ball, artist palette, glasses, t-shirt, dress, crown, top hat,
    ring, gem stone, bell, microphone, guitar, violin, laptop, camera, television, light bulb, books, pencil,
    scissors, key, hammer
    """.split(",")  # noqa: SIM905
)
"""The 148 concepts that alignment is measured on: single, concrete things that nearly every set draws."""

TEMPLATES: tuple[str, ...] = (
    "{a_style} {concept} on {a_background} background",
    "{a_style} sticker of {a_concept} on {a_background} background",
    "{a_concept}, {style} style, {background} background",
    "{style} {concept}, {background}",
    "{a_style} drawing of {a_concept} on {background}",
)


def article(words: str) -> str:
    """Return ``words`` with their indefinite article; plural-looking names keep none."""
    last = words.split()[-1]
    if last.endswith("s") and not last.endswith("ss") and last not in {"bus", "octopus", "cactus", "lens"}:
        return words
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def caption(concept: str, style: str, background: str, rng: random.Random | None = None) -> str:
    """Return a caption; without ``rng`` the canonical one, with it a random template and synonym."""
    template, name, word = TEMPLATES[0], concept, STYLES[style][0]
    if rng is not None:
        template = rng.choices(TEMPLATES, weights=(4, 2, 1, 1, 1))[0]
        name = rng.choice((concept, *SYNONYMS.get(concept, ())))
        word = rng.choices(STYLES[style], weights=(3, 1))[0]
    return template.format(
        style=word,
        concept=name,
        background=background,
        a_style=article(word) if word != "vintage" else "a vintage",
        a_concept=article(name),
        a_background=article(background),
    )
