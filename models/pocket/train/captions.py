"""Prompts as people write them, for scenes and for changes to what is on screen.

The tables hold the words, the functions the grammar. Everything is drawn from the generator that
is passed in, so a seed fixes every prompt.
"""

from collections.abc import Collection, Sequence

import numpy as np

from .attributes import COLOURS, VALUES, Scene, first_scene

Rng = np.random.Generator

WORDS = {
    "kind": {
        "ball": (
            "ball ball ball sphere orb globe circle disc round_ball beach_ball marble "
            "football"
        ).split(),
        "cube": "cube cube cube box block square dice crate brick".split(),
        "triangle": "triangle triangle triangle pyramid triangular_shape wedge cone".split(),
        "star": "star star star star_shape five-pointed_star pentagram".split(),
        "ring": "ring ring ring hoop donut doughnut torus hula_hoop".split(),
        "heart": "heart heart heart love_heart heart_shape valentine heart-shaped_object".split(),
        "diamond": "diamond diamond diamond gem jewel rhombus crystal gemstone lozenge".split(),
        "cross": "cross cross cross plus plus_sign plus_shape cross_shape x_shape".split(),
    },
    "colour": {
        "red": (
            "red red red crimson scarlet ruby dark_red cherry_red blood_red vermilion "
            "reddish maroon"
        ).split(),
        "orange": (
            "orange orange orange tangerine amber bright_orange pumpkin-coloured orangey"
        ).split(),
        "yellow": (
            "yellow yellow yellow golden gold lemon bright_yellow canary_yellow "
            "lemon_yellow"
        ).split(),
        "green": (
            "green green green emerald lime dark_green light_green jade olive lime_green "
            "mint"
        ).split(),
        "cyan": "cyan cyan cyan turquoise teal aqua aquamarine light_cyan turquoise_blue".split(),
        "blue": (
            "blue blue blue navy azure cobalt sapphire dark_blue light_blue sky_blue "
            "royal_blue navy_blue"
        ).split(),
        "purple": (
            "purple purple purple violet lilac lavender mauve plum amethyst dark_purple"
        ).split(),
        "pink": (
            "pink pink pink rose hot_pink fuchsia magenta light_pink rosy baby_pink "
            "pinkish"
        ).split(),
        "white": (
            "white white white pure_white ivory snow-white pearl milky_white chalk_white"
        ).split(),
        "black": "black black black jet_black ebony onyx coal-black pitch-black obsidian".split(),
    },
    "setting": {
        "sky": "sky sky sky air clouds heavens skies open_sky cloudy_sky open_air".split(),
        "sea": "sea sea ocean ocean waves open_sea open_water water lake".split(),
        "beach": (
            "beach beach beach shore seashore sandy_beach sandy_coast coast seaside "
            "shoreline"
        ).split(),
        "desert": (
            "desert desert desert dunes sand_dunes sandy_desert sahara dry_desert "
            "desert_dunes"
        ).split(),
        "snow": (
            "snow snow snowy_field snowfield winter_landscape snowy_plain winter tundra "
            "snowy_landscape ice"
        ).split(),
        "forest": "forest forest forest woods wood woodland jungle trees pine_forest".split(),
        "city": (
            "city city city skyline downtown skyscrapers town city_skyline metropolis "
            "streets buildings cityscape"
        ).split(),
        "mountains": (
            "mountains mountains mountain peaks hills mountain_range snowy_mountains alps "
            "summit snow-capped_peaks cliffs"
        ).split(),
    },
    "motion": {
        "left": (
            "@_to_the_left @_left @_to_the_left @_leftwards @_leftward "
            "@_from_right_to_left @_towards_the_left"
        ).split(),
        "right": (
            "@_to_the_right @_right @_to_the_right @_rightwards @_rightward "
            "@_from_left_to_right @_towards_the_right"
        ).split(),
        "rising": (
            "rise rise rise_up float_up head_up go_up float_upwards fly_upwards ascend "
            "climb soar fly_up move_up go_up move_upwards levitate drift_upwards lift_off"
        ).split(),
        "falling": (
            "fall fall fall_down drop sink descend come_down go_down tumble_down plunge "
            "plummet move_downwards drift_down"
        ).split(),
        "bouncing": (
            "bounce bounce bounce_up_and_down hop jump bounce_around jump_up_and_down leap "
            "bounce_about jump_around leap_around hop_along"
        ).split(),
        "spinning": (
            "spin spin rotate rotate turn spin_around twirl whirl turn_around "
            "spin_on_its_axis spin_in_place rotate_on_the_spot"
        ).split(),
        "circling": (
            "circle circle circle_around orbit go_round go_round_and_round @_in_circles "
            "@_in_a_circle loop_around @_round_and_round @_in_loops"
        ).split(),
        "growing": (
            "grow grow swell pulse expand pulsate inflate get_bigger_and_bigger "
            "grow_larger keep_growing throb"
        ).split(),
    },
    "size": {
        "small": (
            "small small tiny little mini miniature very_small minuscule teeny "
            "really_small"
        ).split(),
        "medium": (
            "medium medium-sized medium_sized mid-sized normal-sized average-sized "
            "regular-sized middle-sized medium-size"
        ).split(),
        "large": (
            "large large huge giant big big enormous massive gigantic very_large very_big "
            "colossal oversized"
        ).split(),
    },
}  # fmt: skip
TIME_PHRASES = {
    "day": (
        "in the daytime|by day|during the day|in daylight|in broad daylight|at noon|"
        "at midday|in the morning|in the afternoon|in the sunshine|on a sunny day|"
        "on a bright day|in bright sunlight|in the sun|under the @ sun"
    ),
    "dusk": (
        "at dusk|at dusk|at sunset|at sunset|in the evening|at twilight|"
        "during the @ sunset|at golden hour|at dawn|at sunrise|as the sun sets|"
        "as the sun goes down|in the @ twilight|at sundown|in the setting sun|"
        "on a @ evening|during sunset"
    ),
    "night": (
        "at night|at night|by night|at midnight|under the stars|under the @ moon|"
        "in the moonlight|in the dark|late at night|in the dead of night|on a dark night|"
        "on a starry night|by moonlight|after dark|in the middle of the night|on a @ night|"
        "during the night|under bright stars|at nighttime"
    ),
}  # fmt: skip
# Beside a named setting the sky is weather; alone it would be the setting.
TIME_SKIES = {
    "day": ("@ daytime sky", "sunny sky", "@ morning sky"),
    "dusk": ("@ evening sky", "@ sunset sky", "@ dusk sky", "twilight sky"),
    "night": ("@ night sky", "starry sky", "star-filled sky", "@ midnight sky", "moonlit sky"),
}
TIME_ADJECTIVES = {
    "day": ("sunny", "daytime", "sunlit", "morning", "noon", "midday", "daylight"),
    "dusk": ("evening", "sunset", "twilight", "dusk", "sunset-lit", "sunrise"),
    "night": ("night", "night", "nighttime", "moonlit", "midnight", "starlit", "starry"),
}
TIME_NOUNS = {
    "day": ("day", "daytime", "noon", "morning", "daylight", "midday", "sunny", "afternoon"),
    "dusk": ("dusk", "sunset", "evening", "twilight", "sundown", "dawn", "golden hour"),
    "night": ("night", "midnight", "nighttime", "night time", "moonlight", "starry night"),
}
TIME_EVENTS = {
    "day": ("the sun comes up", "the sun is shining", "the day begins", "the sun is out"),
    "dusk": ("the sun sets", "the sun goes down", "the sun is setting", "evening comes"),
    "night": ("night falls", "it gets dark", "the stars come out", "the moon comes out"),
}
PREPOSITIONS = {
    "sky": "in in across through against high_up_in",
    "sea": "over above on across at in by near in_front_of",
    "beach": "on on at over above along by across near",
    "desert": "in in over above across through",
    "snow": "in in on over above across through",
    "forest": "in in through over above near among inside",
    "city": "in in over above through across in_front_of",
    "mountains": "in in over above near in_front_of among between",
}
# What a setting's own colours are called; they say nothing of the object.
SCENERY = {
    "sky": (("blue", "cloudy", "clear", "pink", "white", "bright", "wide"), "with @ clouds"),
    "sea": (("blue", "turquoise", "calm", "green", "deep", "stormy", "azure"), "with @ waves"),
    "beach": (("golden", "white", "yellow", "sandy", "tropical", "empty"), "with @ sand"),
    "desert": (("golden", "yellow", "orange", "hot", "sandy", "red"), "with @ dunes"),
    "snow": (("white", "cold", "deep", "frozen", "fresh"), "with @ snowflakes"),
    "forest": (("green", "deep", "lush", "emerald", "misty", "autumn"), "with @ trees"),
    "city": (("grey", "big", "neon", "modern", "busy", "golden", "black"), "with @ lights"),
    "mountains": (("white", "blue", "high", "rocky", "purple", "tall"), "with @ tops"),
}
WEATHER = (
    "under a @ sky", "with @ clouds", "and @ sand", "on @ ground", "and @ lights",
    "and a @ horizon",
)  # fmt: skip
LIGHTS = ("golden", "silver", "pale", "bright", "beautiful")
GO = "fly move move drift travel glide slide float go head sail roll rush run swim".split()
DOUBLED = {"throb", "hop", "drop", "spin", "get", "run", "swim"}
UNCOUNTED = {
    "snow", "air", "ice", "water", "winter", "downtown", "sahara", "open water", "open air",
}  # fmt: skip
ADVERBS = "slowly quickly gently fast gracefully lazily rapidly smoothly steadily softly".split()
NEUTRAL = (
    "shiny glossy beautiful glowing pretty smooth lovely simple mysterious shimmering nice"
).split()
ANY_KIND = ("object", "thing", "shape", "something", "one", "figure")
AT_REST = (
    "", "", "", "", "is", "is seen", "hovers", "appears", "hovering", "floating", "can be seen",
    "sits", "hanging", "moving",
)  # fmt: skip
OPENINGS = (
    "a video of", "cinematic shot of", "please show me", "show me", "i want to see", "imagine",
    "4k video of",
    "render", "a beautiful animation of", "can you show", "give me", "a short clip of",
    "in this video,",
    "film of", "let there be", "draw", "create", "generate a video with", "we see",
    "a scene with", "picture", "wow,",
)  # fmt: skip
ENDINGS = (
    ", 4k", ", cinematic", ", high quality", ", beautiful", ", highly detailed", ", masterpiece",
    " please", ", wow",
    ", photorealistic", ", in the style of #", ", wide shot", ", close-up", ", by #", " for #",
    ", hd", " :)", "!!",
    ", 3d render", ", smooth animation", ", minimalistic", ", trending on #", ", thanks",
    ", called #", ", ultra hd",
)  # fmt: skip
EDIT_OPENINGS = (
    "please", "could you", "now", "and suddenly", "suddenly,", "then", "next,", "same thing but",
    "can you", "ok,",
    "i want you to", "let's see", "and", "and now", "but", "same but", "go on,", "instead,",
    "okay now", "so",
)  # fmt: skip
EDITS = {
    "kind": (
        "make it @np|turn it into @np|@np instead|change it to @np|now @np|"
        "replace it with @np|@np|it becomes @np|let it be @np|change the object to @np|"
        "turn the @oldkind into @np|@np instead of the @oldkind|i want @np now|"
        "it should be @np|swap it for @np|transform it into @np|morph into @np"
    ),
    "colour": (
        "make it @|change the colour to @|change the color to @|colour it @|color it @|"
        "paint it @|now @|@|it turns @|@ instead|turn it @|in @|from @oldcolour to @|"
        "let it be @|the colour should be @|not @oldcolour but @|it is @ now|turn @|"
        "@ color|switch to @|it should be @|it becomes @|recolor it @|a @ one|"
        "@ instead of @oldcolour"
    ),
    "setting": (
        "we are @where now|move it @where|now @where|take it to the @|@where|go to the @|"
        "change the background to @|change the scene to @|@ instead|let's go to the @|@|"
        "put it @where|switch the background to @|with @ in the background|"
        "bring us to the @|the background is @ now|in front of @|and now @where"
    ),
    "motion": (
        "let it @|make it @|now it @s|it starts @ing|start @ing|@|it should @|have it @|"
        "@ now|now @ing|it @s|it begins to @|stop @olding and start @ing|@ing instead|"
        "it is @ing|keep @ing"
    ),
    "size": (
        "make it @|@|now @|a @ one|it is @ now|it should be @|it becomes @|let it be @|"
        "change the size to @|@ size|@ instead"
    ),
    "time": (
        "now @when|it is @ now|make it @|change the time to @|@when|@|@event|"
        "turn day into @|let it be @|set the time to @|@ now|it becomes @|and now it is @"
    ),
}  # fmt: skip
RENEWALS = ("make the # @", "the # turns @", "the # is @ now", "now the # is @", "paint the # @")
# Sizes may be asked for by comparison; "grow" alone is a motion.
COMPARISONS = {
    "small": "smaller|make it smaller|much smaller|shrink it|scale it down|a smaller one|shrink",
    "medium": "normal size|make it medium|medium size|not too big|average size|regular size",
    "large": (
        "bigger|make it bigger|much bigger|larger|enlarge it|scale it up|a bigger one|"
        "make it larger"
    ),
}


def pick(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))].replace("_", " ")


def chance(rng: Rng, p: float) -> bool:
    return rng.random() < p


def word(rng: Rng, name: str, value: str) -> str:
    """A word for the value of an attribute; '@' in a motion is any way to go."""
    text = pick(rng, WORDS[name][value])
    return text.replace("@", pick(rng, GO))


def other(rng: Rng, name: str, value: str) -> str:
    return pick(rng, [v for v in VALUES[name] if v != value])


def inflect(phrase: str, form: str) -> str:
    """`fly up` as `flies up` (form 's') or `flying up` (form 'ing')."""
    verb, _, rest = phrase.partition(" ")
    if form == "ing":
        verb = verb[:-1] if verb.endswith("e") else verb
        verb += (verb[-1] if verb in DOUBLED else "") + "ing"
    elif verb.endswith("y") and verb[-2] not in "aeo":
        verb = verb[:-1] + "ies"
    else:
        verb += "es" if verb.endswith(("sh", "o")) else "s"
    return f"{verb} {rest}".strip()


def article(rng: Rng, noun: str) -> str:
    kind = rng.random()
    if kind < 0.1:
        return noun
    if kind < 0.25:
        return f"the {noun}"
    vowel = (noun[0] in "aeiou") != chance(rng, 0.05)
    return f"an {noun}" if vowel else f"a {noun}"


def noun_phrase(rng: Rng, attributes: dict[str, str], motion: str = "") -> str:
    """The object by its kind, colour and size, the motion as an adjective if there is one."""
    words = [word(rng, n, attributes[n]) for n in ("size", "colour") if n in attributes]
    if chance(rng, 0.15):
        words.append(pick(rng, NEUTRAL))
    if motion:
        words.append(motion)
    if chance(rng, 0.2):
        rng.shuffle(words)
    kind = word(rng, "kind", attributes["kind"]) if "kind" in attributes else pick(rng, ANY_KIND)
    if words and chance(rng, 0.08):
        joint = pick(rng, (", ", " that is ", ", which is ", " in ", " made of "))
        return article(rng, kind) + joint + " and ".join(words)
    return article(rng, pick(rng, (" ", " ", " ", ", ")).join(words) + " " * bool(words) + kind)


def tint(rng: Rng, phrase: str, own: Sequence[str] = LIGHTS) -> str:
    """Fills '@' with a colour of the setting's, any colour or nothing."""
    kind = rng.random()
    colour = pick(rng, own) if kind < 0.3 else pick(rng, COLOURS) if kind < 0.5 else ""
    return phrase.replace("@ ", f"{colour} " if colour else "").replace("a evening", "an evening")


def where(rng: Rng, setting: str, when: str = "", preposition: bool = True) -> str:
    """The setting, with its time as an adjective if `when` names one."""
    noun = word(rng, "setting", setting)
    looks, extra = SCENERY[setting]
    words = [tint(rng, "@ ", looks).strip()] if chance(rng, 0.35) else []
    words += [pick(rng, TIME_ADJECTIVES[when])] if when else []
    full = " ".join([*filter(None, words), noun])
    style = rng.random()
    if style < 0.55 or (style < 0.85 and (noun in UNCOUNTED or noun.endswith("s"))):
        full = f"the {full}"
    elif style < 0.85:
        full = f"{'an' if full[0] in 'aeiou' else 'a'} {full}"
    if chance(rng, 0.06):
        full += " " + tint(rng, extra, COLOURS)
    return f"{pick(rng, PREPOSITIONS[setting].split())} {full}" if preposition else full


def place_and_time(rng: Rng, attributes: dict[str, str]) -> list[str]:
    """Phrases for the setting and the time, in any order."""
    setting, time = attributes.get("setting"), attributes.get("time")
    if setting and time and chance(rng, 0.25):
        return [where(rng, setting, time)]
    phrases = [where(rng, setting)] if setting else []
    if setting and time and chance(rng, 0.2):
        sky = tint(rng, pick(rng, TIME_SKIES[time]), COLOURS)
        under = pick(rng, ("under", "beneath", "below"))
        phrases.append(f"{under} {pick(rng, ('the', 'a'))} {sky}")
    elif time:
        phrases.append(tint(rng, pick(rng, TIME_PHRASES[time].split("|"))))
    elif setting and chance(rng, 0.08):
        phrases.append(tint(rng, pick(rng, WEATHER), COLOURS))
    if chance(rng, 0.3):
        rng.shuffle(phrases)
    return phrases


def keywords(rng: Rng, attributes: dict[str, str]) -> str:
    """`red, ball, beach, night`."""
    words = []
    for name, value in attributes.items():
        text = pick(rng, TIME_NOUNS[value]) if name == "time" else word(rng, name, value)
        text = inflect(text, "ing") if name == "motion" and chance(rng, 0.6) else text
        words.append(f"{name}: {text}" if chance(rng, 0.04) else text)
    if chance(rng, 0.7):
        rng.shuffle(words)
    return pick(rng, (", ", ", ", " ", "; ", " / ", " + ", ". ")).join(words)


def act_of(rng: Rng, motion: str) -> str:
    """The motion as a predicate: `that flies left`, `is flying left`, `slowly flying left`."""
    verb = word(rng, "motion", motion)
    if chance(rng, 0.45):
        act = pick(rng, ("", "", "", "", "is ")) + inflect(verb, "ing")
    else:
        act = pick(rng, ("", "", "that ", "which ", "it ")) + inflect(verb, "s")
    if chance(rng, 0.15):
        adverb = pick(rng, ADVERBS)
        act = f"{act} {adverb}" if chance(rng, 0.75) else f"{adverb} {act}"
    return act


def sentence(rng: Rng, attributes: dict[str, str]) -> str:
    phrases = place_and_time(rng, attributes)
    motion, adjective = attributes.get("motion"), ""
    if motion and chance(rng, 0.15):
        verb = word(rng, "motion", motion)
        adjective = inflect(verb, "ing") if " " not in verb else ""
    subject = noun_phrase(rng, attributes, adjective)
    act = act_of(rng, motion) if motion and not adjective else pick(rng, AT_REST)
    parts = [subject, act, *phrases]
    order = rng.random()
    if order < 0.2 and phrases:  # the place or the time first
        parts = [phrases[0] + pick(rng, (",", ",", "")), subject, act, *phrases[1:]]
    elif order < 0.3:  # one sentence each
        return pick(rng, (". ", ". ", ", ", " and ")).join(filter(None, parts))
    elif order < 0.4:
        parts = [subject, *phrases, act]
    return " ".join(filter(None, parts))


def name_of(rng: Rng) -> str:
    """A word that nobody knows."""
    syllables = "zo ka li ber mun tar vex qui pol dra sha no ri wen gus ilo jab eth".split()
    return "".join(pick(rng, syllables) for _ in range(int(rng.integers(2, 4))))


def misspell(rng: Rng, text: str) -> str:
    """One long word with a letter lost, doubled or swapped inside."""
    words = text.split(" ")
    long = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha()]
    if not long:
        return text
    i = long[int(rng.integers(len(long)))]
    w, at = words[i], int(rng.integers(2, len(words[i]) - 1))
    lost, doubled = w[:at] + w[at + 1 :], w[:at] + w[at] + w[at:]
    swapped = w[: at - 1] + w[at] + w[at - 1] + w[at + 1 :]
    words[i] = (lost, doubled, swapped)[int(rng.integers(3))]
    return " ".join(words)


def dress(rng: Rng, text: str, openings: Sequence[str] = OPENINGS, filler: float = 0.3) -> str:
    """Filler, names, typos, capitals and punctuation."""
    if chance(rng, filler):
        text = f"{pick(rng, openings)} {text}"
    text = misspell(rng, text) if chance(rng, 0.06) else text
    if chance(rng, filler):
        text += pick(rng, ENDINGS)
    text = text.replace("#", name_of(rng)) if "#" in text else text
    style = rng.random()
    if style < 0.5:
        text = text[:1].upper() + text[1:]
    elif style < 0.55:
        text = text.upper() if style < 0.52 else text.title()
    return text + pick(rng, ("", "", "", ".", ".", "!", " .", "..."))


def caption(rng: Rng, scene: Scene, named: Collection[str]) -> str:
    """A prompt for `scene` that names exactly the attributes in `named`."""
    attributes = {name: getattr(scene, name) for name in VALUES if name in named}
    form = keywords if chance(rng, 0.12) else sentence
    return dress(rng, form(rng, attributes))


def first_prompt(rng: Rng, scene: Scene) -> tuple[str, Scene]:
    """A stream's first prompt and the scene that it asks for, the unnamed at their defaults."""
    named = dict(zip(VALUES, (getattr(scene, name) for name in VALUES)))
    if chance(rng, 0.4):
        kept = rng.random()
        named = {n: v for n, v in named.items() if chance(rng, 0.95 if n == "kind" else kept)}
    return caption(rng, scene, named), first_scene(named)


def edit(rng: Rng, changes: dict[str, str], before: Scene | None = None) -> str:
    """A prompt that asks for `changes`; `before` is what it may call the old object."""
    changes = dict(changes)
    clauses = []
    if "kind" in changes:
        thing = {n: changes.pop(n) for n in ("kind", "colour", "size") if n in changes}
        clauses.append(edit_kind(rng, thing, before))
    clauses += [edit_one(rng, name, value, before) for name, value in changes.items()]
    rng.shuffle(clauses)
    text = clauses[0]
    for clause in clauses[1:]:
        text += pick(rng, (" and ", " and ", ", ", ". ", ", then ", ", and ")) + clause
    return dress(rng, text, EDIT_OPENINGS, filler=0.15)


def edit_kind(rng: Rng, thing: dict[str, str], before: Scene | None) -> str:
    """`make it a blue cube`, or `make the cube blue` of a cube that is there already."""
    if len(thing) == 2 and chance(rng, 0.2):
        kind, (name, value) = word(rng, "kind", thing["kind"]), list(thing.items())[1]
        pattern = pick(rng, RENEWALS)
        return pattern.replace("#", kind).replace("@", word(rng, name, value))
    old = before.kind if before else other(rng, "kind", thing["kind"])
    pattern = pick(rng, EDITS["kind"].split("|")).replace("@oldkind", word(rng, "kind", old))
    return pattern.replace("@np", noun_phrase(rng, thing))


def edit_one(rng: Rng, name: str, value: str, before: Scene | None) -> str:
    if name == "size" and chance(rng, 0.5):
        return pick(rng, COMPARISONS[value].split("|"))
    pattern = pick(rng, EDITS[name].split("|"))
    old = getattr(before, name) if before else other(rng, name, value)
    if name == "motion":
        verb, old = word(rng, name, value), inflect(word(rng, name, old), "ing")
        fills = {"@olding": old, "@ing": inflect(verb, "ing"), "@s": inflect(verb, "s"), "@": verb}
    elif name == "time":
        fills = {"@when": tint(rng, pick(rng, TIME_PHRASES[value].split("|")))}
        fills |= {"@event": pick(rng, TIME_EVENTS[value]), "@": pick(rng, TIME_NOUNS[value])}
    elif name == "setting":
        bare = where(rng, value, preposition=False)
        bare = bare.removeprefix("the ") if "the @" in pattern else bare
        fills = {"@where": where(rng, value), "@": bare}
    else:
        fills = {"@oldcolour": old, "@": word(rng, name, value)}
    for mark, text in fills.items():
        pattern = pattern.replace(mark, text)
    return pattern
